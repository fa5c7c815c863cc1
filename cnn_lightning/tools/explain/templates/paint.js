// Arrays as pictures: blue < 0, white 0, red > 0. The same numbers and layout as in cnn_lightning/draw.py.

const PALETTE = data.palette.map((color) => [1, 3, 5].map((place) => parseInt(color.slice(place, place + 2), 16)));
const ZERO = (PALETTE.length - 1) / 2;
const TAIL = 0.995;

// Red, green and blue of a value on a scale that ends at ±limit; NaN is shown as 0.
function colorOf(value, limit) {
  const part = Math.min(Math.max(value / limit || 0, -1), 1);
  return PALETTE[Math.floor(part * ZERO + 0.5) + ZERO];
}

function sizeOf(shape) {
  return shape.reduce((a, b) => a * b, 1);
}

// The scale of values on which 0 is white: symmetric, or from 0 on if no value is negative.
function scaleOf(values) {
  const sizes = values.map(Math.abs).filter((size) => size > 0 && size < Infinity).sort();
  const negative = values.some((value) => value < 0);
  if (!sizes.length) return { low: 0, high: 1, beyond: false };
  const place = TAIL * (sizes.length - 1), index = Math.floor(place), part = place - index;
  const [a, b] = [sizes[index], sizes[Math.min(index + 1, sizes.length - 1)]];
  const high = part < 0.5 ? a + (b - a) * part : b - (b - a) * (1 - part);
  return { low: negative ? -high : 0, high, beyond: sizes[sizes.length - 1] > high * 1.001 };
}

// Three digits: as `short` in Python.
function short(value) {
  return String(+value.toPrecision(3)).replaceAll("-", "−");
}

// The bar under a figure, with the same in words for screen readers.
function scaleBar({ low, high, beyond }) {
  const labels = low < 0 ? [short(low), "0", short(high)] : ["0", short(high)];
  const bar = element("span", { className: low < 0 ? "ramp" : "ramp positive" }, ...labels.map((label) => element("i", { textContent: label })));
  bar.setAttribute("aria-hidden", "true");
  const words = `${low < 0 ? `blue ${short(low)}, ` : ""}white 0, red ${short(high)}${beyond ? " and beyond" : ""}`;
  return [bar, ...(beyond ? [element("small", { textContent: "and beyond", ariaHidden: "true" })] : []), element("span", { className: "unseen", textContent: words })];
}

// ---- one map

// Paints values (height, width), a canvas pixel each.
function paintMap(canvas, values, height, width, limit) {
  canvas.width = width;
  canvas.height = height;
  putMap(canvas.getContext("2d"), values, height, width, limit, 0, 0);
}

function putMap(pen, values, height, width, limit, left, top) {
  const image = pen.createImageData(width, height);
  values.forEach((value, index) => image.data.set(colorOf(value, limit), 4 * index));
  for (let index = 3; index < image.data.length; index += 4) image.data[index] = 255;
  pen.putImageData(image, left, top);
}

// Paints pixels (channels, height, width) from 0 to 1 as a photograph: grey, or red-green-blue.
function paintPhotograph(canvas, { shape: [channels, height, width], values }) {
  canvas.width = width;
  canvas.height = height;
  const pen = canvas.getContext("2d"), image = pen.createImageData(width, height), size = height * width;
  for (let index = 0; index < size; index++) {
    for (let color = 0; color < 3; color++) image.data[4 * index + color] = Math.round(255 * values[(channels === 3 ? color : 0) * size + index]);
    image.data[4 * index + 3] = 255;
  }
  pen.putImageData(image, 0, 0);
}

// ---- grids of maps

const LEAST_TILE = 8;

// Paints maps (n, height, width) in rows with a transparent line between them, and returns their scale.
// `layout`: columns, the most maps, the most pixels of a map's side, and the width of a tile in CSS pixels.
function paintGrid(canvas, { shape: [n, height, width], values }, layout) {
  const count = Math.min(n, layout.most), size = height * width;
  const step = Math.ceil(Math.max(height, width) / layout.side);
  const maps = Array.from({ length: count }, (_, index) => smaller(values.subarray(index * size, (index + 1) * size), height, width, step));
  const [rows, columns] = [Math.ceil(height / step), Math.ceil(width / step)];
  const grow = Math.max(1, Math.floor(LEAST_TILE / Math.max(rows, columns)));
  const scale = scaleOf(Float64Array.from(maps.flatMap((map) => Array.from(map))));
  const [tall, wide] = [rows * grow, columns * grow];
  const across = Math.min(layout.columns, count);
  canvas.width = across * (wide + 1) - 1;
  canvas.height = Math.ceil(count / across) * (tall + 1) - 1;
  const pen = canvas.getContext("2d");
  maps.forEach((map, index) => putMap(pen, grown(map, rows, columns, grow), tall, wide, scale.high, (index % across) * (wide + 1), Math.floor(index / across) * (tall + 1)));
  canvas.style.width = `${canvas.width * Math.max(1, Math.floor(layout.tile / wide + 0.5))}px`;
  return scale;
}

// Means of squares of `step` pixels; the last row and column are repeated where the map ends within a square.
function smaller(map, height, width, step) {
  if (step === 1) return map;
  const rows = Math.ceil(height / step), columns = Math.ceil(width / step);
  return Float64Array.from({ length: rows * columns }, (_, index) => {
    const top = Math.floor(index / columns) * step, left = (index % columns) * step;
    let total = 0;
    for (let i = 0; i < step; i++) for (let j = 0; j < step; j++) total += map[Math.min(top + i, height - 1) * width + Math.min(left + j, width - 1)];
    return total / (step * step);
  });
}

function grown(map, height, width, times) {
  if (times === 1) return map;
  return Float64Array.from({ length: map.length * times * times }, (_, index) => {
    const row = Math.floor(index / (width * times) / times), column = Math.floor((index % (width * times)) / times);
    return map[row * width + column];
  });
}

// Paints kernels (n, 3, height, width) of red, green and blue as coloured tiles: grey is 0.
function paintColors(canvas, { shape: [n, , height, width], values }, layout) {
  const count = Math.min(n, layout.most), size = height * width, across = Math.min(layout.columns, count);
  const grow = Math.max(1, Math.floor(LEAST_TILE / Math.max(height, width)));
  const [tall, wide] = [height * grow, width * grow];
  const limit = scaleOf(values.subarray(0, count * 3 * size)).high;
  canvas.width = across * (wide + 1) - 1;
  canvas.height = Math.ceil(count / across) * (tall + 1) - 1;
  const pen = canvas.getContext("2d");
  for (let kernel = 0; kernel < count; kernel++) {
    const image = pen.createImageData(wide, tall);
    for (let index = 0; index < wide * tall; index++) {
      const place = Math.floor(index / wide / grow) * width + Math.floor((index % wide) / grow);
      for (let color = 0; color < 3; color++) {
        const part = Math.min(Math.max(values[(kernel * 3 + color) * size + place] / limit, -1), 1);
        image.data[4 * index + color] = Math.floor(part * ZERO + ZERO + 1.5);
      }
      image.data[4 * index + 3] = 255;
    }
    pen.putImageData(image, (kernel % across) * (wide + 1), Math.floor(kernel / across) * (tall + 1));
  }
  canvas.style.width = `${canvas.width * Math.max(1, Math.floor(layout.tile / wide + 0.5))}px`;
}
