// The number of windows along one axis, for any size, kernel, stride, padding and dilation.

const OPTIONS = { size: 8, kernel: 3, stride: 1, padding: 1, dilation: 1 };
const MOST_CELLS = 64; // of a side of the picture

// The size of the output, or the message that the layer would give.
function windowsOf(op, { size, kernel, stride, padding, dilation }) {
  const wrong = Object.entries({ size, kernel, stride, padding, dilation }).find(([, value]) => !Number.isInteger(value));
  if (wrong) return { error: `${op}: ${wrong[0]}: expected an integer, got ${wrong[1]}` };
  const reach = dilation * (kernel - 1), wide = size + 2 * padding;
  if (size < 1) return { error: `size: expected at least 1, got ${size}` };
  if (op === "max_pool2d") {
    if (Math.min(kernel, stride, dilation) < 1) return { error: `${op}: kernel_size, stride, dilation: expected at least 1, got (${kernel}, ${kernel}), (${stride}, ${stride}), (${dilation}, ${dilation})` };
    if (padding < 0 || padding > Math.floor(kernel / 2)) return { error: `${op}: padding: expected at most half the kernel (${kernel}, ${kernel}) and not negative, got (${padding}, ${padding})` };
    if (wide <= reach) return { error: `${op}: x: expected an image of at least ${reach + 1 - 2 * padding}, got ${size}` };
  } else {
    if (Math.min(stride, dilation) < 1) return { error: `${op}: stride and dilation: expected at least 1, got ${stride} and ${dilation}` };
    if (padding < 0) return { error: `${op}: padding: expected at least 0, got ${padding}` };
    if (kernel < 1 || wide <= reach) return { error: `${op}: x: expected a padded image of at least ${reach + 1}x${reach + 1} for the kernel ${kernel}x${kernel}, got ${wide}x${wide}` };
  }
  return { count: Math.floor((wide - reach - 1) / stride) + 1, reach, wide };
}

// Paints a square of `count` cells a side: colorOfCell(row, column) is the name of a colour of the page.
function paintCells(canvas, count, colorOfCell, [top, left, bottom, right]) {
  const zoom = Math.max(3, Math.floor(280 / count)), styles = getComputedStyle(document.documentElement);
  canvas.width = canvas.height = count * zoom + 1;
  const pen = canvas.getContext("2d"), color = (name) => styles.getPropertyValue(name).trim();
  pen.fillStyle = color("--line");
  pen.fillRect(0, 0, canvas.width, canvas.height);
  for (let row = 0; row < count; row++) for (let column = 0; column < count; column++) {
    pen.fillStyle = color(colorOfCell(row, column));
    pen.fillRect(column * zoom + 1, row * zoom + 1, zoom - 1, zoom - 1);
  }
  pen.strokeStyle = color("--ink");
  pen.lineWidth = 2;
  pen.strokeRect(left * zoom + 1, top * zoom + 1, (right - left) * zoom - 1, (bottom - top) * zoom - 1);
}

// The padded input with the taps of window (row, column), and the output with its cells up to there.
function paintWindows(seen, output, { size, kernel, stride, padding, dilation }, { wide, count, reach }, [row, column], filled) {
  const [top, left] = [row * stride, column * stride];
  const isTap = (r, first) => r >= first && r <= first + reach && (r - first) % dilation === 0;
  paintCells(seen, wide, (r, c) => {
    if (isTap(r, top) && isTap(c, left)) return "--window";
    return Math.min(r, c) >= padding && Math.max(r, c) < padding + size ? "--paper" : "--line";
  }, [top, left, top + reach + 1, left + reach + 1]);
  paintCells(output, count, (r, c) => r === row && c === column ? "--window" : r * count + c < filled ? "--card" : "--paper", [row, column, row + 1, column + 1]);
}

function beginWindows() {
  const fields = document.getElementById("windows-fields"), root = document.getElementById("windows-stage"), equationLine = document.getElementById("windows-equation");
  const options = { ...OPTIONS };
  let op = "conv2d", found, place = [0, 0], filling = false;
  const geometric = data.layers.filter((layer) => layer.kernel && layer.in?.length === 3 && layer.in[1] === layer.in[2] && ["kernel", "stride", "padding", "dilation"].every((name) => layer[name][0] === layer[name][1]));
  const chosen = element("select", { id: "windows-layer" }, element("option", { value: "", textContent: "own numbers" }), ...geometric.map((layer) => element("option", { value: layer.label, textContent: layer.label })));
  const kind = element("select", { id: "windows-kind" }, ...["conv2d", "max_pool2d"].map((name) => element("option", { textContent: name })));
  const inputs = Object.fromEntries(Object.keys(OPTIONS).map((name) => [name, element("input", { type: "number", name, min: name === "padding" ? 0 : 1, inputMode: "numeric" })]));
  fields.append(element("label", {}, "as in ", chosen), element("label", {}, "layer ", kind), ...Object.entries(inputs).map(([name, input]) => element("label", {}, `${name} `, input)));

  const seen = element("canvas"), output = element("canvas"), about = element("p", { className: "running" });
  seen.setAttribute("role", "img");
  clickable(output, () => [found.count, found.count], () => place, (row, column) => { filling = false; place = [row, column]; render(); });
  output.addEventListener("pointermove", (event) => {
    const box = output.getBoundingClientRect(), each = (part, whole) => Math.min(Math.max(Math.floor((part / whole) * found.count), 0), found.count - 1);
    if (control.isPlaying()) return;
    place = [each(event.clientY - box.top, box.height), each(event.clientX - box.left, box.width)];
    filling = false;
    render();
  });
  const control = player(root, {
    at: () => place[0] * (found?.count ?? 1) + place[1],
    last: () => (found?.count ?? 1) ** 2 - 1,
    go(step) { filling = true; place = [Math.floor(step / found.count), step % found.count]; render(); },
    begin() { if (this.at() >= this.last()) place = [0, 0]; },
    rest() {},
  });
  const picture = element("div", {}, control.element, element("div", { className: "sides" },
    element("div", { className: "named" }, seen, element("div", { className: "about", textContent: "the input, with its padding in grey; the frame is the window, in color the pixels that it uses" })),
    element("span", { className: "way", textContent: "→", ariaHidden: "true" }),
    element("div", { className: "named" }, output, element("div", { className: "about", textContent: "the output" }))), about);
  root.append(picture);

  function take(label) {
    const layer = layers.get(label);
    if (!layer) return;
    op = kind.value = layer.picker === "pool" ? "max_pool2d" : "conv2d";
    Object.assign(options, { size: layer.in[1], kernel: layer.kernel[0], stride: layer.stride[0], padding: layer.padding[0], dilation: layer.dilation[0] });
    Object.entries(inputs).forEach(([name, input]) => { input.value = options[name]; });
  }
  function count() {
    found = windowsOf(op, options);
    place = [0, 0];
    filling = false;
    equationLine.className = found.error ? "equation error" : "equation";
    const { size, kernel, stride, padding, dilation } = options;
    equationLine.textContent = found.error ?? `output size = ⌊(size + 2 × padding − dilation × (kernel − 1) − 1) / stride⌋ + 1\n= ⌊(${size} + 2 × ${padding} − ${dilation} × (${kernel} − 1) − 1) / ${stride}⌋ + 1 = ${found.count}`;
    const large = !found.error && found.wide > MOST_CELLS;
    picture.hidden = Boolean(found.error) || large;
    if (large) equationLine.textContent += ` (no picture: it has more than ${MOST_CELLS} pixels a side)`;
    if (!picture.hidden) render();
  }
  function render() {
    const [row, column] = place;
    paintWindows(seen, output, options, found, place, filling ? row * found.count + column : Infinity);
    output.setAttribute("aria-label", `The output, ${found.count} × ${found.count}: click a cell, or use the arrow keys`);
    const first = place.map((each) => each * options.stride - options.padding), last = first.map((each) => each + found.reach);
    about.textContent = `output (${row}, ${column}): rows ${text(first[0])} to ${text(last[0])}, columns ${text(first[1])} to ${text(last[1])} of the input${options.dilation > 1 ? `, every ${options.dilation}` : ""}`;
    seen.setAttribute("aria-label", `The padded input; ${about.textContent}`);
    control.update();
  }
  Object.entries(inputs).forEach(([name, input]) => input.addEventListener("input", () => {
    options[name] = input.value.trim() === "" ? NaN : +input.value;
    chosen.value = "";
    count();
  }));
  kind.addEventListener("change", () => { op = kind.value; chosen.value = ""; count(); });
  chosen.addEventListener("change", () => { take(chosen.value); count(); });
  Object.entries(inputs).forEach(([name, input]) => { input.value = options[name]; });
  if (geometric.length) { chosen.value = geometric[0].label; take(geometric[0].label); }
  count();
}

beginWindows();
