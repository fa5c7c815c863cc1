"use strict";
const data = JSON.parse(document.getElementById("data").textContent);

function element(name, options = {}, ...children) {
  const made = Object.assign(document.createElement(name), options);
  made.append(...children);
  return made;
}

// Four digits, with the minus character (U+2212).
function text(value) {
  const magnitude = Math.abs(value);
  const shown = magnitude !== 0 && (magnitude < 1e-3 || magnitude >= 1e5) ? value.toExponential(2) : String(+value.toPrecision(4));
  return shown.replaceAll("-", "−");
}

// ---- arrays: {shape, values} in row-major order

function unpack(packed) {
  if (!packed) return null;
  const bytes = Uint8Array.from(atob(packed.base64), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const values = Float32Array.from({ length: bytes.length / 4 }, (_, index) => view.getFloat32(4 * index, true));
  return { shape: packed.shape, values };
}

function at(array, ...place) {
  let index = 0;
  place.forEach((each, axis) => { index = index * array.shape[axis] + each; });
  return array.values[index];
}

// ---- the slider

function showMoment(index) {
  const frame = data.frames[index];
  document.getElementById("moment-title").textContent = `${frame.title}: loss ${frame.loss}`;
  document.querySelectorAll("#moment-classes tr").forEach((row) => {
    const percent = (100 * frame.probabilities[row.dataset.class]).toFixed(1);
    row.querySelector(".bar").style.width = `${percent}%`;
    row.querySelector(".number").textContent = `${percent} %`;
  });
  document.querySelectorAll("#moment-pictures figure").forEach((figure, place) => {
    const picture = frame.pictures[place];
    figure.querySelector("img").src = picture.uri;
    figure.querySelector("img").alt = picture.alt;
    figure.querySelector(".scale").textContent = picture.scale;
  });
}

// ---- pickers

// Draws map `channel` of an array (C, H, W) from black to white, with a frame around `box` = [r0, c0, r1, c1].
function draw(canvas, array, channel, box, crosses = []) {
  const [, height, width] = array.shape;
  const zoom = Math.max(1, Math.floor(224 / Math.max(height, width)));
  canvas.width = width * zoom;
  canvas.height = height * zoom;
  const pen = canvas.getContext("2d");
  const map = array.values.subarray(channel * height * width, (channel + 1) * height * width);
  const low = map.reduce((a, b) => Math.min(a, b)), high = Math.max(map.reduce((a, b) => Math.max(a, b)), low + 1e-30);
  map.forEach((value, index) => {
    const level = Math.round((255 * (value - low)) / (high - low));
    pen.fillStyle = `rgb(${level},${level},${level})`;
    pen.fillRect((index % width) * zoom, Math.floor(index / width) * zoom, zoom, zoom);
  });
  const [top, left, bottom, right] = box.map((each) => each * zoom);
  for (const [color, thick] of [["#000", 4], ["#fff", 2]]) {
    pen.strokeStyle = color;
    pen.lineWidth = thick;
    pen.strokeRect(left + 1, top + 1, right - left - 2, bottom - top - 2);
    for (const [row, column] of crosses) {
      const x = (column + 0.5) * zoom, y = (row + 0.5) * zoom, reach = Math.max(2, zoom / 3);
      pen.beginPath();
      pen.moveTo(x - reach, y - reach); pen.lineTo(x + reach, y + reach);
      pen.moveTo(x + reach, y - reach); pen.lineTo(x - reach, y + reach);
      pen.stroke();
    }
  }
}

function table(rows, won) {
  const made = element("table", { className: "cells" });
  rows.forEach((row, r) => {
    made.append(element("tr", {}, ...row.map((value, c) => element("td", {
      textContent: value === null ? "pad" : text(value) + (won && won[0] === r && won[1] === c ? " ★" : ""),
      className: won && won[0] === r && won[1] === c ? "won" : "",
    }))));
  });
  return made;
}

function titled(title, child) {
  return element("div", {}, element("span", { textContent: title }), child);
}

function sum(values) {
  return values.reduce((a, b) => a + b, 0);
}

// Number inputs for the place; `show` is called with their values at every change.
function controls(root, limits, show) {
  const inputs = Object.entries(limits).map(([name, limit]) => {
    const input = element("input", { type: "number", name, min: 0, max: limit - 1, value: 0, inputMode: "numeric" });
    input.addEventListener("input", update);
    return input;
  });
  function update() {
    const places = inputs.map((input) => Math.min(Math.max(Math.trunc(+input.value) || 0, 0), input.max));
    show(...places);
  }
  root.append(element("p", { className: "controls" }, ...inputs.map((input) =>
    element("label", {}, `${input.name} (0 to ${input.max}) `, input))));
  return { update, set(...places) { inputs.slice(-places.length).forEach((input, i) => { input.value = places[i]; }); update(); },
    get: () => inputs.map((input) => +input.value) };
}

// Makes a map of the output a control: a click or an arrow key chooses a pixel.
function clickable(canvas, height, width, picked) {
  canvas.className = "clickable";
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "Output map: click a pixel, or use the arrow keys");
  const bounded = (row, column) => picked.set(Math.min(Math.max(row, 0), height - 1), Math.min(Math.max(column, 0), width - 1));
  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    bounded(Math.floor(((event.clientY - box.top) / box.height) * height), Math.floor(((event.clientX - box.left) / box.width) * width));
  });
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    const [row, column] = picked.get().slice(-2);
    bounded(row + move[0], column + move[1]);
  });
}

// The first pixel of window (row, column) in the input, and the window's box inside the borders of the input.
function windowOf(layer, shape, row, column) {
  const places = [row, column].map((each, axis) => each * layer.stride[axis] - layer.padding[axis]);
  const ends = places.map((each, axis) => each + layer.dilation[axis] * (layer.kernel[axis] - 1) + 1);
  const box = [...places.map((each) => Math.max(0, each)), ...ends.map((each, axis) => Math.min(shape[axis + 1], each))];
  return { places, box };
}

function patchOf(layer, x, channel, places) {
  return Array.from({ length: layer.kernel[0] }, (_, i) => Array.from({ length: layer.kernel[1] }, (_, j) => {
    const r = places[0] + i * layer.dilation[0], c = places[1] + j * layer.dilation[1];
    return r < 0 || c < 0 || r >= x.shape[1] || c >= x.shape[2] ? null : at(x, channel, r, c);
  }));
}

function pickConv(root, layer) {
  const x = unpack(layer.x), weight = unpack(layer.weight), bias = unpack(layer.bias), y = unpack(layer.y);
  const [channels, height, width] = y.shape, inputs = weight.shape[1];
  const seen = element("canvas"), output = element("canvas"), result = element("div", { className: "result" });
  result.setAttribute("aria-live", "polite");
  seen.setAttribute("role", "img");
  const picked = controls(root, { channel: channels, row: height, column: width }, show);
  if (channels < layer.of) root.append(element("p", { textContent: `The first ${channels} of ${layer.of} output channels can be chosen here.` }));
  root.append(element("div", { className: "side" }, titled("input channel with the largest sum; the frame is the patch", seen), titled("output channel, lowest value black, highest white: click a pixel", output)), result);
  clickable(output, height, width, picked);

  function show(channel, row, column) {
    const { places, box } = windowOf(layer, x.shape, row, column);
    const first = Math.floor(channel / (layer.of / layer.groups)) * inputs;
    const terms = Array.from({ length: inputs }, (_, index) => {
      const patch = patchOf(layer, x, first + index, places);
      const kernel = patch.map((line, i) => line.map((_, j) => at(weight, channel, index, i, j)));
      const products = patch.map((line, i) => line.map((value, j) => (value ?? 0) * kernel[i][j]));
      return { index: first + index, patch, kernel, products, sum: sum(products.flat()) };
    }).sort((a, b) => Math.abs(b.sum) - Math.abs(a.sum));
    const shown = terms.slice(0, 4), rest = terms.slice(4), b = bias ? at(bias, channel) : 0;
    draw(seen, x, terms[0].index, box);
    draw(output, y, channel, [row, column, row + 1, column + 1]);
    seen.setAttribute("aria-label", `Input channel ${terms[0].index}, rows ${box[0]} to ${box[2] - 1}, columns ${box[1]} to ${box[3] - 1} framed`);
    const total = b + sum(terms.map((term) => term.sum));
    result.replaceChildren(
      ...shown.map((term) => element("div", { className: "step" }, titled(`input channel ${term.index}: patch`, table(term.patch)), "×",
        titled("kernel", table(term.kernel)), "=", titled("products", table(term.products)), "→", titled("their sum", text(term.sum)))),
      ...(rest.length ? [element("p", { textContent: `The other ${rest.length} input channels add ${text(sum(rest.map((term) => term.sum)))}.` })] : []),
      element("p", { className: "sum", textContent: `${terms.length > 1 ? "sums" : "sum"} ${text(total - b)} + bias ${text(b)} = ${text(total)}; the layer's output there is ${text(at(y, channel, row, column))}` }),
    );
  }
  picked.set(0, Math.floor(height / 2), Math.floor(width / 2));
}

function pickPool(root, layer) {
  const x = unpack(layer.x), grad = unpack(layer.grad);
  const [channels, height, width] = grad.shape;
  const seen = element("canvas"), upstream = element("canvas"), result = element("div", { className: "result" });
  result.setAttribute("aria-live", "polite");
  seen.setAttribute("role", "img");
  const picked = controls(root, { channel: channels, row: height, column: width }, show);
  root.append(element("div", { className: "side" }, titled("input; the frame is the window, the cross its largest value", seen), titled("upstream gradient, lowest value black, highest white: click a pixel", upstream)), result);
  clickable(upstream, height, width, picked);

  function show(channel, row, column) {
    const { places, box } = windowOf(layer, x.shape, row, column);
    const patch = patchOf(layer, x, channel, places);
    let won = null;
    patch.forEach((line, i) => line.forEach((value, j) => {
      if (value !== null && (won === null || value > patch[won[0]][won[1]])) won = [i, j];  // of equal values the first
    }));
    const [r, c] = won.map((each, axis) => places[axis] + each * layer.dilation[axis]);
    draw(seen, x, channel, box, [[r, c]]);
    draw(upstream, grad, channel, [row, column, row + 1, column + 1]);
    seen.setAttribute("aria-label", `Input channel ${channel}, rows ${box[0]} to ${box[2] - 1}, columns ${box[1]} to ${box[3] - 1} framed`);
    const g = at(grad, channel, row, column), others = patch.flat().filter((value) => value !== null).length - 1;
    result.replaceChildren(
      element("div", { className: "step" }, titled("window", table(patch, won)), "→", titled("the largest", text(patch[won[0]][won[1]]))),
      element("p", { className: "sum", textContent: `input (${r}, ${c}) is the largest and gets the whole gradient ${text(g)}; the other ${others} get 0 from this window` }),
    );
  }
  picked.set(0, Math.floor(height / 2), Math.floor(width / 2));
}

function pickLinear(root, layer) {
  const x = unpack(layer.x), weight = unpack(layer.weight), bias = unpack(layer.bias), y = unpack(layer.y);
  const result = element("div", { className: "result" });
  result.setAttribute("aria-live", "polite");
  const picked = controls(root, { output: y.shape[0] }, show);
  if (y.shape[0] < layer.of) root.append(element("p", { textContent: `The first ${y.shape[0]} of ${layer.of} outputs can be chosen here.` }));
  root.append(result);

  function show(output) {
    const terms = Array.from(x.values, (value, index) => ({ index, value, weight: at(weight, output, index) }))
      .map((term) => ({ ...term, product: term.value * term.weight })).sort((a, b) => Math.abs(b.product) - Math.abs(a.product));
    const rest = terms.slice(10), b = bias ? at(bias, output) : 0, total = b + sum(terms.map((term) => term.product));
    const rows = element("table", { className: "cells" }, element("tr", {}, ...["input", "value", "weight", "product"].map((name) => element("th", { textContent: name, scope: "col" }))));
    terms.slice(0, 10).forEach((term) => rows.append(element("tr", {}, ...[term.index, text(term.value), text(term.weight), text(term.product)].map((each) => element("td", { textContent: each })))));
    result.replaceChildren(
      titled("the largest terms", rows),
      ...(rest.length ? [element("p", { textContent: `The other ${rest.length} terms add ${text(sum(rest.map((term) => term.product)))}.` })] : []),
      element("p", { className: "sum", textContent: `sum ${text(total - b)} + bias ${text(b)} = ${text(total)}; the layer's output there is ${text(at(y, output))}` }),
    );
  }
  picked.update();
}

function pickSoftmax(root, layer) {
  const x = unpack(layer.x), n = x.values.length;
  const choice = element("select", { name: "class" }, ...data.names.map((name, index) => element("option", { value: index, textContent: name })));
  const result = element("div", { className: "result" });
  result.setAttribute("aria-live", "polite");
  root.append(element("p", { className: "controls" }, element("label", {}, "class ", choice)), result);
  const largest = Math.max(...x.values), powers = Array.from(x.values, (value) => Math.exp(value - largest)), total = sum(powers);

  function show() {
    const k = +choice.value, p = powers[k] / total, target = (k === layer.label ? 1 - layer.smoothing : 0) + layer.smoothing / n;
    const line = (words) => element("p", { textContent: words });
    result.replaceChildren(
      line(`The largest input, ${text(largest)}, is subtracted from all ${n} inputs: p is the same, and the powers stay small.`),
      line(`e^(${text(x.values[k])} − ${text(largest)}) = ${text(powers[k])}; the sum of these over all classes is ${text(total)}`),
      element("p", { className: "sum", textContent: `p = ${text(powers[k])} / ${text(total)} = ${text(p)}; the gradient of the loss by this input is p − ${text(target)} = ${text(p - target)}` }),
      ...(k === layer.label ? [line(`This is the class of the picture: −ln p = ${text(-Math.log(p))}${layer.smoothing ? "; the loss also has small terms for the other classes (label smoothing)" : ", the loss"}.`)] : []),
    );
  }
  choice.addEventListener("change", show);
  choice.value = layer.label;
  show();
}

const PICKERS = { conv: pickConv, pool: pickPool, linear: pickLinear, softmax: pickSoftmax };

// A picker is made when its layer is opened: unpacking the numbers of a deep network takes time.
document.querySelectorAll(".picker").forEach((picker) => {
  const layer = picker.closest("details");
  function begin() {
    if (!layer.open || picker.dataset.ready) return;
    picker.dataset.ready = "yes";
    PICKERS[picker.dataset.kind](picker, data.layers[picker.dataset.layer]);
  }
  layer.addEventListener("toggle", begin);
  begin();
});

const moment = document.getElementById("moment");
if (moment) moment.addEventListener("input", () => showMoment(+moment.value));

// A link to a folded element opens it.
function unfold() {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let each = target; each; each = each.parentElement) if (each.tagName === "DETAILS") each.open = true;
  if (target) target.scrollIntoView();
}
addEventListener("hashchange", unfold);
unfold();
