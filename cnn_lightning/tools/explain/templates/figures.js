// The figures of arrays follow what is shown: a canvas takes the place of the picture that the page came with.

const arrayFigures = [...document.querySelectorAll("figure[data-layer][data-array]")];
const stale = new Set(), inSight = new Set();

// Those out of sight are painted when they come into sight.
const sight = new IntersectionObserver((entries) => entries.forEach(({ target, isIntersecting }) => {
  inSight[isIntersecting ? "add" : "delete"](target);
  if (isIntersecting && stale.has(target)) repaint(target);
}), { rootMargin: "200px" });
arrayFigures.forEach((figure) => sight.observe(figure));
addEventListener("beforeprint", () => stale.forEach(repaint));

let asPainted = true;  // the first state is that of the pictures
whenShown(() => {
  if (!asPainted) {
    arrayFigures.forEach((figure) => {
      stale.add(figure);
      if (inSight.has(figure)) repaint(figure);
    });
  }
  asPainted = false;
});

function repaint(figure) {
  stale.delete(figure);
  const { layer, array } = figure.dataset, arrays = shown.layers[layer];
  if (array === "histograms") {
    if (arrays.y) paintHistograms(canvasIn(figure), arrays);
    return;
  }
  const value = arrays[array.replace("_colors", "")], layout = data.figures[layer][array];
  if (!value) return;
  const canvas = canvasIn(figure);
  if (array.endsWith("_colors")) {
    paintColors(canvas, value, layout);
  } else {
    const scale = paintGrid(canvas, mapsOf(array, value, layout), layout);
    figure.querySelector(".scale").replaceChildren(figure.querySelector(".count"), ...scaleBar(scale));
  }
  const [low, high] = value.values.reduce(([a, b], each) => [Math.min(a, each), Math.max(b, each)], [Infinity, -Infinity]);
  canvas.ariaLabel = canvas.ariaLabel.replace(/values from \S+ to [^\s;]+/, `values from ${short(low)} to ${short(high)}`);
}

function canvasIn(figure) {
  const old = figure.querySelector("img, canvas");
  if (old.tagName === "CANVAS") return old;
  const canvas = element("canvas", { className: old.className, role: "img", ariaLabel: old.alt });
  old.replaceWith(canvas);
  return canvas;
}

// Maps (n, height, width) of an array, as cnn_lightning/tools/explain/figures.py takes them.
function mapsOf(array, { shape, values }, { outputs, inputs }) {
  if (shape.length === 4) {
    const [, all, height, width] = shape, size = height * width, found = [];
    for (let o = 0; o < outputs; o++) found.push(...values.subarray(o * all * size, (o * all + inputs) * size));
    return { shape: [outputs * inputs, height, width], values: Float32Array.from(found) };
  }
  if (shape.length === 3) return array === "grad_x" && shape[0] === 3 ? withSum(shape, values) : { shape, values };
  return { shape: shape.length === 2 ? [1, ...shape] : [values.length, 1, 1], values };
}

// The sum over the colours before them.
function withSum([channels, height, width], values) {
  const size = height * width;
  const total = Float32Array.from({ length: size }, (_, index) => values[index] + values[size + index] + values[2 * size + index]);
  return { shape: [channels + 1, height, width], values: Float32Array.of(...total, ...values) };
}

// ---- histograms

const BINS = 40;

function histogram(values) {
  let [low, high] = values.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
  const edges = [low, high];
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const counts = new Array(BINS).fill(0);
  for (const value of values) counts[Math.min(BINS - 1, Math.floor(((value - low) / (high - low)) * BINS))]++;
  return { counts, edges };
}

// Two plots a row, black on white, as `histograms` in Python.
function paintHistograms(canvas, { y, grad_y, weight, grad_weight }) {
  const named = Object.entries({ output: y, "gradient of output": grad_y, weight, "gradient of weight": grad_weight }).filter(([, array]) => array);
  const width = 240, height = 150, columns = Math.min(2, named.length), sharp = 2;
  canvas.width = columns * width * sharp;
  canvas.height = Math.ceil(named.length / 2) * height * sharp;
  canvas.style.width = `${columns * width}px`;
  const pen = canvas.getContext("2d");
  pen.scale(sharp, sharp);
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  named.forEach(([name, { values }], index) => plot(pen, name, histogram(values), (index % 2) * width, Math.floor(index / 2) * height, width, height));
}

function plot(pen, name, { counts, edges }, x, y, width, height) {
  const left = x + 0.05 * width, across = (0.9 * width) / BINS, bottom = y + 0.8 * height, tall = 0.62 * height, most = Math.max(...counts);
  pen.fillStyle = "#404040";
  counts.forEach((count, bin) => pen.fillRect(left + bin * across, bottom - (tall * count) / most, across, (tall * count) / most));
  pen.fillStyle = "#000";
  pen.fillRect(left, bottom, BINS * across, 1);
  pen.font = "11px system-ui, sans-serif";
  pen.fillText(name, left, y + 0.14 * height);
  pen.fillText(short(edges[0]), left, y + 0.94 * height);
  pen.textAlign = "right";
  pen.fillText(short(edges[1]), left + BINS * across, y + 0.94 * height);
  pen.textAlign = "left";
}
