// Convolution: the kernel slides, products are summed; backward, the gradient is spread by the kernel, or meets the patch.

// What happens at one cell of the output, for one channel of the input: pixels, kernel, and their products.
function convTerms(layer, now, [channel, row, column], index) {
  const { places, box } = windowOf(layer, now.x.shape, row, column);
  const seen = inputOf(layer, now, channel, index), patch = patchOf(layer, now.x, seen, places);
  const kernel = patch.map((each, i) => each.map((_, j) => at(now.weight, channel, index, i, j)));
  const products = patch.map((each, i) => each.map((value, j) => (value ?? 0) * kernel[i][j]));
  return { index, seen, places, box, patch, kernel, products, sum: sum(products.flat()) };
}

function convInputs(layer, now, place) {
  return Array.from({ length: now.weight.shape[1] }, (_, index) => convTerms(layer, now, place, index));
}

function strongest(all) {
  return all.reduce((best, each) => Math.abs(each.sum) > Math.abs(best.sum) ? each : best);
}

// Visits the first `steps` terms that lie inside the input, cell by cell of the output and tap by tap of the kernel:
// visit(cell, i, j, row, column).
function eachTerm(layer, now, steps, visit) {
  const [, rows, columns] = now.grad_y.shape, [, height, width] = now.x.shape, [down, across] = layer.kernel;
  for (let cell = 0; cell < rows * columns && cell * down * across < steps; cell++) {
    const { places: [top, left] } = windowOf(layer, now.x.shape, Math.floor(cell / columns), cell % columns);
    for (let tap = 0; tap < down * across && cell * down * across + tap < steps; tap++) {
      const i = Math.floor(tap / across), j = tap % across, row = top + i * layer.dilation[0], column = left + j * layer.dilation[1];
      if (row >= 0 && column >= 0 && row < height && column < width) visit(cell, i, j, row, column);
    }
  }
}

// The gradient of one input channel after `steps` terms: each cell of the upstream gradient adds its kernel to its window.
function convGradX(layer, now, channel, index, steps) {
  const [, height, width] = now.x.shape, values = new Float64Array(height * width), g = mapOf(now.grad_y, channel).values;
  eachTerm(layer, now, steps, (cell, i, j, row, column) => { values[row * width + column] += at(now.weight, channel, index, i, j) * g[cell]; });
  return { height, width, values };
}

// The gradient of the kernel of one input channel after `steps` terms: each cell adds its patch times its gradient.
function convGradW(layer, now, channel, index, steps) {
  const values = Array.from({ length: layer.kernel[0] }, () => new Array(layer.kernel[1]).fill(0));
  const g = mapOf(now.grad_y, channel).values, x = mapOf(now.x, inputOf(layer, now, channel, index));
  eachTerm(layer, now, steps, (cell, i, j, row, column) => { values[i][j] += x.values[row * x.width + column] * g[cell]; });
  return values;
}

const CONV = {
  passes: { forward: FORWARD, dx: BACK_TO_X, dw: { words: "backward: gradient of w", roles: ["x", "g"] } },

  // Forward: the taps, then all other input channels as one term, then the bias.
  terms(layer, now, { pass }) {
    const taps = layer.kernel[0] * layer.kernel[1];
    return pass === "forward" ? taps + (now.weight.shape[1] > 1 ? 1 : 0) + 1 : taps;
  },

  more(layer, now, change) {
    const count = now.weight.shape[1];
    if (count === 1) return [];
    const choice = element("select", { name: "input" }, element("option", { value: "", textContent: "the largest" }), ...Array.from({ length: count }, (_, index) => element("option", { value: index, textContent: index })));
    choice.addEventListener("change", () => change({ input: choice.value === "" ? null : +choice.value }));
    return [element("label", {}, "input channel ", choice)];
  },

  // While cells fill, one channel stays in view: the one that was largest when they began.
  whole: (layer, now, state) => ({ largest: strongest(convInputs(layer, now, state.place)).index }),

  paint(layer, now, state, view) {
    const all = convInputs(layer, now, state.place), one = all[state.input ?? state.largest];
    const taps = layer.kernel[0] * layer.kernel[1], tap = Math.min(state.term, taps) - 1;
    const current = state.filling && tap >= 0 && state.term <= taps ? [Math.floor(tap / layer.kernel[1]), tap % layer.kernel[1]] : null;
    const shown = { one, all, current, done: Math.min(state.term, taps), spots: current ? [pixelOf(layer, one.places, ...current)] : [] };
    ({ forward: convForward, dx: convBackX, dw: convBackW })[state.pass](layer, now, state, view, shown);
  },
};

function convForward(layer, now, state, view, { one, all, current, done, spots }) {
  const [channel] = state.place, b = now.bias ? at(now.bias, channel) : 0;
  paintSide(view.input, mapOf(now.x, one.seen), { frame: one.box, spots, grey: isPicture(layer, now.x) });
  paintSide(view.output, mapOf(now.y, channel), { filled: view.filled, spots: [state.place.slice(1)] });
  view.aboutInput.textContent = `x: input channel ${one.seen}; the frame is the patch, rows ${one.box[0]} to ${one.box[2] - 1}, columns ${one.box[1]} to ${one.box[3] - 1}`;
  view.aboutOutput.textContent = `y: output channel ${channel}`;
  const others = sum(all.filter((each) => each !== one).map((each) => each.sum)), taps = one.products.flat().length;
  const running = sum(one.products.flat().slice(0, done)) + (all.length > 1 && state.term > taps ? others : 0);
  const whole = state.term >= CONV.terms(layer, now, state), total = one.sum + others;
  const [first, second, both] = equation([total, b], total + b, (p, q) => p + q);
  view.result.replaceChildren(
    element("div", { className: "step" }, titled(`input channel ${one.seen}: patch`, table(one.patch, { role: "x", now: current }), "x"), "×",
      titled("kernel", table(one.kernel, { role: "w", now: current }), "w"), "=",
      titled("products", table(one.products, { now: current, done })), "→",
      titled(whole ? "their sum" : "running total", element("strong", { textContent: text(whole ? one.sum : running) }), "sum")),
    ...(all.length > 1 ? [line(`The other ${all.length - 1} input channels add ${text(others)}.`)] : []),
    whole
      ? line(`${all.length > 1 ? "sums" : "sum"} ${first} + bias ${second} = ${both}; the layer's output there is ${text(at(now.y, ...state.place))}`, "sum")
      : line(`after ${state.term} of ${CONV.terms(layer, now, state)} terms: ${text(running)}`, "running"),
  );
}

function convBackX(layer, now, state, view, { one, current, done, spots }) {
  const [channel] = state.place, g = at(now.grad_y, ...state.place);
  const full = convGradX(layer, now, channel, one.index, Infinity), products = one.kernel.map((each) => each.map((value) => value * g));
  paintSide(view.input, convGradX(layer, now, channel, one.index, view.steps), { frame: one.box, spots, limit: largestOf(full.values) });
  paintSide(view.output, mapOf(now.grad_y, channel), { spots: [state.place.slice(1)] });
  view.aboutInput.textContent = `gradient of x, input channel ${one.seen}: what output channel ${channel} adds to it${state.filling ? " up to this cell" : ""}; the frame is the window`;
  view.aboutOutput.textContent = `g: upstream gradient of output channel ${channel}`;
  view.result.replaceChildren(
    element("div", { className: "step" }, titled("upstream gradient", element("strong", { textContent: text(g) }), "g"), "×",
      titled("kernel", table(one.kernel, { role: "w", now: current }), "w"), "=", titled("added to the window", table(products, { role: "dx", now: current, done }), "dx")),
    line(`g times each weight is added to the pixel under it. All ${layer.of} output channels together make the gradient of x${wholeGradX(now, one, spots, state)}.`, "running"),
  );
}

function wholeGradX(now, one, spots, { place }) {
  const pixel = spots[0] ?? one.box.slice(0, 2);
  return now.grad_x && place && isInside(now.x.shape, pixel) ? `: it is ${text(at(now.grad_x, one.seen, ...pixel))} at (${pixel.join(", ")})` : "";
}

function convBackW(layer, now, state, view, { one, current, done, spots }) {
  const [channel] = state.place, g = at(now.grad_y, ...state.place);
  const gathered = convGradW(layer, now, channel, one.index, view.steps), full = convGradW(layer, now, channel, one.index, Infinity);
  paintSide(view.input, mapOf(now.x, one.seen), { frame: one.box, spots, grey: isPicture(layer, now.x) });
  paintSide(view.output, mapOf(now.grad_y, channel), { spots: [state.place.slice(1)] });
  view.aboutInput.textContent = `x: input channel ${one.seen}; the frame is the patch`;
  view.aboutOutput.textContent = `g: upstream gradient of output channel ${channel}`;
  view.result.replaceChildren(
    element("div", { className: "step" }, titled("patch", table(one.patch, { role: "x", now: current }), "x"), "×",
      titled("upstream gradient", element("strong", { textContent: text(g) }), "g"), "=",
      titled("products", table(one.patch.map((each) => each.map((value) => (value ?? 0) * g)), { now: current, done })), "→",
      titled(state.filling ? "their sum up to this cell" : "their sum over all cells", table(gathered, { role: "dw", limit: largestOf(full.flat()), now: current }), "dw")),
    line(`Each cell of the output adds its patch times its gradient to the gradient of kernel (${channel}, ${one.index}).`, "running"),
  );
}

// Whether an input is the picture itself, which is shown in grey.
function isPicture(layer, x) {
  return layer.first && x.shape[0] <= 3;
}
