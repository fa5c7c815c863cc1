// One number traced through the network: back to the picture by the largest term, forward to the loss.

// ---- from one layer to the next

// back: of a place in the output, the place in the input with the largest term, and how that term reads. ahead: of a
// place in the input, the place in the output in which its term is the largest, and how that reads (if not as back says);
// or {end}, why there is none.
const WAYS = {
  conv: {
    back(layer, now, place) {
      const inputs = convInputs(layer, now, place);
      const one = largestTerm(inputs.flatMap((each) => each.products.flatMap((row, i) => row.map((term, j) => ({
        term, x: each.patch[i][j], w: each.kernel[i][j], place: [each.seen, ...pixelOf(layer, each.places, i, j)],
      })))).filter((each) => each.x !== null));
      return one && { place: one.place, how: `largest of ${inputs.length * layer.kernel[0] * layer.kernel[1]} terms: ${text(one.x)} × ${text(one.w)} = ${text(one.term)}` };
    },
    ahead(layer, now, [channel, row, column]) {
      const [outputs, height, width] = now.y.shape, inputs = now.weight.shape[1], x = at(now.x, channel, row, column), each = layer.of / layer.groups;
      const found = [];
      for (let o = 0; o < outputs; o++) {
        const index = channel - Math.floor(o / each) * inputs;
        if (index < 0 || index >= inputs) continue;
        for (let i = 0; i < layer.kernel[0]; i++) for (let j = 0; j < layer.kernel[1]; j++) {
          const u = (row + layer.padding[0] - i * layer.dilation[0]) / layer.stride[0], v = (column + layer.padding[1] - j * layer.dilation[1]) / layer.stride[1];
          if (!Number.isInteger(u) || !Number.isInteger(v) || u < 0 || v < 0 || u >= height || v >= width) continue;
          found.push({ w: at(now.weight, o, index, i, j), place: [o, u, v] });
        }
      }
      return onward(now, x, found);
    },
  },
  pool: {
    back(layer, now, [channel, row, column]) {
      const { places } = windowOf(layer, now.x.shape, row, column), patch = patchOf(layer, now.x, channel, places);
      return { place: [channel, ...pixelOf(layer, places, ...winnerOf(patch))], how: `largest of the window of ${patch.flat().filter((value) => value !== null).length}` };
    },
    ahead(layer, now, [channel, row, column]) {
      const [, height, width] = now.y.shape;
      for (let u = 0; u < height; u++) for (let v = 0; v < width; v++) {
        const { place } = WAYS.pool.back(layer, now, [channel, u, v]);
        if (place[1] === row && place[2] === column) return { place: [channel, u, v] };
      }
      return { end: "another number is the largest of its window: this one has no effect from here on" };
    },
  },
  linear: {
    back(layer, now, [output]) {
      const [one] = linearTerms(now, output);
      return { place: unflat(one.index, layer.in), how: `largest of ${now.x.values.length} terms: ${text(one.value)} × ${text(one.weight)} = ${text(one.product)}` };
    },
    ahead(layer, now, place) {
      const index = flat(place, layer.in), x = now.x.values[index];
      return onward(now, x, Array.from({ length: now.weight.shape[0] }, (_, output) => ({ w: at(now.weight, output, index), place: [output] })));
    },
  },
  flatten: {
    back: (layer, now, place) => ({ place: unflat(place[0], layer.in), how: "the same number" }),
    ahead: (layer, now, place) => ({ place: [flat(place, layer.in)] }),
  },
  relu: {
    back: (layer, now, place) => ({ place, how: at(now.x, ...place) > 0 ? "passed on, as it is above 0" : "set to 0, as it is not above 0" }),
    ahead: (layer, now, place) => ({ place }),
  },
  copy: { back: (layer, now, place) => ({ place, how: "the same number" }), ahead: (layer, now, place) => ({ place }) },
  scale: {
    back: (layer, now, place) => ({ place, how: `× ${text(at(now.scale, place[0]))} + ${text(at(now.shift, place[0]))}` }),
    ahead: (layer, now, place) => ({ place }),
  },
};

function largestTerm(terms) {
  return terms.reduce((best, each) => !best || Math.abs(each.term) > Math.abs(best.term) ? each : best, null);
}

// The output in which a number has its largest term: of those outputs that have an effect on the loss, if that is known.
function onward(now, x, outputs) {
  const terms = outputs.map((each) => ({ ...each, term: x * each.w })), effective = terms.filter(({ place }) => numberAt(now.grad_y, place));
  const one = largestTerm(effective.length ? effective : terms);
  if (!x) return { end: "it is 0, so that its terms are 0: it has no effect from here on" };
  return one ? { place: one.place, how: `one of its terms: ${text(x)} × ${text(one.w)} = ${text(one.term)}` } : { end: "no window covers it" };
}

// ---- the path

// The number at a place of an array; null where the page does not have it.
function numberAt(array, place) {
  if (!array || place.length !== array.shape.length || place.some((each, axis) => each >= array.shape[axis])) return null;
  return at(array, ...place);
}

function stepAt(label, place, how) {
  const now = shown.layers[label];
  return { label, place, value: numberAt(now.y, place), gradient: numberAt(now.grad_y, place), how };
}

// The steps from the picture to the loss through one number: {label, place, value, gradient, how}. The label of the
// picture is null. `start` and `end` say why the path begins or ends there.
function pathOf(label, place) {
  const steps = [stepAt(label, place)];
  let start = "", end = "";
  for (let layer = layers.get(label); ;) {
    const now = shown.layers[layer.label], way = WAYS[layer.picker], [first] = steps;
    const from = way && now.x && first.value !== null ? way.back(layer, now, first.place) : null;
    if (!from) { start = whyNot(layer); break; }
    first.how = from.how;
    if (layer.first) {
      steps.unshift({ label: null, place: from.place, value: numberAt(now.x, from.place), gradient: numberAt(now.grad_x, from.place), how: "normalised pixel" });
      break;
    }
    if (!layer.from) { start = `the input of ${layer.label} is not the output of one layer alone`; break; }
    steps.unshift(stepAt(layer.from, from.place));
    layer = layers.get(layer.from);
  }
  for (;;) {
    const last = steps[steps.length - 1], next = data.layers.find((layer) => layer.from === last.label);
    if (!next) { end = `the output of ${last.label} goes on into something other than one layer`; break; }
    if (next.picker === "softmax") {
      const p = shown.probabilities[last.place[0]];
      steps.push({ label: next.label, place: [], value: shown.loss, gradient: 1, how: `p of ${data.names[last.place[0]]} = ${text(p)}; the loss is −ln p of ${data.names[shown.label]}` });
      break;
    }
    const now = shown.layers[next.label], way = WAYS[next.picker];
    const to = way && now.x && now.y && numberAt(now.x, last.place) !== null ? way.ahead(next, now, last.place) : { end: whyNot(next) };
    if (to.end) { end = to.end; break; }
    steps.push(stepAt(next.label, to.place, to.how ?? way.back(next, now, to.place).how));
  }
  return { steps, start, end };
}

function whyNot(layer) {
  return WAYS[layer.picker] ? `the page has only a part of the numbers of ${layer.label}` : `the page does not follow numbers through ${layer.label} (${layer.type})`;
}

// The pixels of the picture that a number depends on: {rows: [from, to], columns: [from, to]}, the end not included; null
// if the page does not know.
function receptiveField(label, place) {
  let box = place.length === 3 ? place.slice(1).map((each) => [each, each + 1]) : null;
  for (let layer = layers.get(label); layer; layer = layers.get(layer.from)) {
    if (!WAYS[layer.picker]) return null;
    if (layer.picker === "linear") {
      const shape = firstImage(layer.from);
      return shape && { rows: [0, shape[1]], columns: [0, shape[2]] };
    }
    if (layer.picker === "flatten" && layer.in.length === 3) box = unflat(place[0], layer.in).slice(1).map((each) => [each, each + 1]);
    if (layer.kernel) box = box.map(([low, high], axis) => [
      low * layer.stride[axis] - layer.padding[axis],
      (high - 1) * layer.stride[axis] - layer.padding[axis] + layer.dilation[axis] * (layer.kernel[axis] - 1) + 1,
    ]);
    if (layer.first) return box && inPicture(box, layer.in);
  }
  return null;
}

// The shape of the picture, if the layers before a linear one lead back to it.
function firstImage(label) {
  for (let layer = layers.get(label); layer; layer = layers.get(layer.from)) if (layer.first) return layer.in;
  return null;
}

function inPicture(box, [, ...sizes]) {
  const [rows, columns] = box.map(([low, high], axis) => [Math.max(0, low), Math.min(sizes[axis], high)]);
  return { rows, columns };
}

// ---- the view

let traced = { steps: [], start: "", end: "" };

// Where the path goes through a layer's output; undefined if it does not.
function tracedPlace(label) {
  return traced.steps.find((step) => step.label === label && label !== null)?.place;
}

function showTrace() {
  const list = document.getElementById("trace-path");
  if (picked.label === null || !shown.layers[picked.label].y) return;
  traced = pathOf(picked.label, picked.place);
  list.replaceChildren(...(traced.start ? [element("li", { className: "how", textContent: traced.start })] : []),
    ...traced.steps.map(traceStep), ...(traced.end ? [element("li", { className: "how", textContent: traced.end })] : []));
  showField();
  const here = traced.steps.find((step) => step.label === picked.label);
  document.getElementById("trace-summary").textContent = `Traced: ${nameOf(here)} = ${here.value === null ? "unknown" : text(here.value)}, ${traced.steps.length} steps.`;
  if (typeof markTrace === "function") markTrace(traced.steps);
}

function nameOf({ label, place }) {
  return `${label ?? "picture"}${place.length ? `[${place.join(", ")}]` : ""}`;
}

function traceStep(step) {
  const layer = step.label === null ? null : document.querySelector(`.layer[data-label="${CSS.escape(step.label)}"]`);
  const name = layer ? element("a", { href: `#${layer.id}`, textContent: nameOf(step) }) : element("span", { textContent: nameOf(step) });
  const value = element("strong", { textContent: `= ${step.value === null ? "unknown" : text(step.value)}` });
  const gradient = element("span", { className: "role-g", textContent: step.gradient === null ? "gradient unknown" : `gradient ${text(step.gradient)}` });
  return element("li", { className: step.label === picked.label ? "here" : "" }, name, value, gradient, element("span", { className: "how", textContent: step.how }));
}

// The picture with the receptive field of the picked number, and the pixel at the path's start.
function showField() {
  const canvas = document.getElementById("trace-picture"), about = document.getElementById("trace-field"), field = receptiveField(picked.label, picked.place);
  const [start] = traced.steps, crosses = start.label === null ? [start.place.slice(1)] : [];
  paintPicture(canvas, shown.pixels, field && [field.rows[0], field.columns[0], field.rows[1], field.columns[1]], crosses);
  about.textContent = field
    ? `The frame is the receptive field of ${nameOf(picked)}: rows ${field.rows[0]} to ${field.rows[1] - 1}, columns ${field.columns[0]} to ${field.columns[1] - 1}.${crosses.length ? " The cross is the pixel at the start of the path." : ""}`
    : `The page does not know the receptive field of ${nameOf(picked)}.`;
  canvas.setAttribute("aria-label", `The picture. ${about.textContent}`);
}

// Paints pixels (channels, height, width) from 0 to 1, grey or in colour, with a frame and crosses.
function paintPicture(canvas, pixels, frame, crosses) {
  const [channels, height, width] = pixels.shape, zoom = Math.max(1, Math.floor(224 / Math.max(height, width)));
  canvas.width = width * zoom;
  canvas.height = height * zoom;
  const pen = canvas.getContext("2d");
  const size = height * width, at = (index, color) => Math.round(255 * pixels.values[(channels === 3 ? color : 0) * size + index]);
  paintCellColors(pen, height, width, zoom, (index) => [at(index, 0), at(index, 1), at(index, 2)]);
  for (const [color, thick] of [["#000", 5], ["#ffb000", 3]]) {
    pen.strokeStyle = color;
    pen.lineWidth = thick;
    if (frame) outline(pen, frame.map((each) => each * zoom));
    crosses.forEach(([row, column]) => crossOut(pen, (column + 0.5) * zoom, (row + 0.5) * zoom, Math.max(3, zoom / 3)));
  }
}

// The place of the largest number that a layer gives.
function largestPlace(label) {
  const { y } = shown.layers[label];
  const index = y.values.reduce((best, value, each) => Math.abs(value) > Math.abs(y.values[best]) ? each : best, 0);
  return unflat(index, y.shape);
}

function beginTrace() {
  const choice = document.getElementById("trace-layer");
  choice.append(...data.layers.filter((layer) => WAYS[layer.picker]).map((layer) => element("option", { value: layer.label, textContent: layer.label })));
  choice.addEventListener("change", () => pick(choice.value, largestPlace(choice.value)));
  whenPicked(() => { choice.value = picked.label; showTrace(); });
  whenShown(showTrace);
}

// The path of the picture's class, until one picks another number.
let placeOfClass = picked.place;

function traceClass() {
  const last = layers.get(data.layers.find((layer) => layer.picker === "softmax")?.from);
  if (!last || picked.place !== placeOfClass || picked.place[0] === shown.label || numberAt(shown.layers[last.label].y, [shown.label]) === null) return;
  placeOfClass = [shown.label];
  pick(last.label, placeOfClass);
}

beginTrace();
