// Linear: every output is a weighted sum of all inputs.

const LARGEST = 10; // terms that are listed one by one

function linearTerms(now, output) {
  return Array.from(now.x.values, (value, index) => ({ index, value, weight: at(now.weight, output, index), product: value * at(now.weight, output, index) }))
    .sort((a, b) => Math.abs(b.product) - Math.abs(a.product));
}

// The gradient of the input from the first `outputs` outputs.
function linearGradX(now, outputs) {
  const [rows, columns] = now.weight.shape, values = new Float64Array(columns);
  for (let row = 0; row < Math.min(rows, outputs); row++) {
    const g = now.grad_y.values[row];
    for (let column = 0; column < columns; column++) values[column] += g * now.weight.values[row * columns + column];
  }
  return values;
}

const LINEAR = {
  passes: { forward: FORWARD, dx: BACK_TO_X, dw: { words: "backward: gradient of w", roles: ["dw", "g"] } },

  terms(layer, now, { pass }) {
    const inputs = now.x.values.length;
    return pass === "forward" ? Math.min(inputs, LARGEST) + (inputs > LARGEST ? 1 : 0) + 1 : 1;
  },

  paint(layer, now, state, view) {
    ({ forward: linearForward, dx: linearBackX, dw: linearBackW })[state.pass](layer, now, state, view);
  },
};

function linearForward(layer, now, state, view) {
  const [output] = state.place, terms = linearTerms(now, output), listed = terms.slice(0, LARGEST), rest = sum(terms.slice(LARGEST).map((term) => term.product));
  const b = now.bias ? at(now.bias, output) : 0, total = sum(listed.map((term) => term.product)) + rest;
  const done = Math.min(state.term, listed.length), whole = state.term >= LINEAR.terms(layer, now, state);
  const running = sum(listed.slice(0, done).map((term) => term.product)) + (terms.length > LARGEST && state.term > listed.length ? rest : 0);
  const side = stripOf(now.x.values), cell = (index) => [Math.floor(index / side.width), index % side.width];
  paintSide(view.input, side, { spots: state.filling && done ? [cell(listed[done - 1].index)] : [] });
  paintSide(view.output, stripOf(now.y.values), { filled: view.filled, spots: [cellOf(now.y, state.place)] });
  view.aboutInput.textContent = `x: the ${now.x.values.length} inputs, row by row`;
  view.aboutOutput.textContent = `y: the outputs`;
  const [first, second, both] = equation([total, b], total + b, (p, q) => p + q);
  view.result.replaceChildren(
    titled("the largest terms", termTable(listed, done, state.filling)),
    ...(terms.length > LARGEST ? [line(`The other ${terms.length - LARGEST} terms add ${text(rest)}.`)] : []),
    whole
      ? line(`sum ${first} + bias ${second} = ${both}; the layer's output there is ${text(at(now.y, output))}`, "sum")
      : line(`after ${state.term} of ${LINEAR.terms(layer, now, state)} terms: ${text(running)}`, "running"),
  );
}

function termTable(listed, done, filling) {
  const head = [["input", ""], ["value", "x"], ["weight", "w"], ["product", ""], ["running total", "sum"]];
  const made = element("table", { className: "cells" }, element("tr", {}, ...head.map(([name, role]) => {
    const cell = element("th", { textContent: name, scope: "col", className: role && `role-${role}` });
    if (role) cell.dataset.role = role;
    return cell;
  })));
  let total = 0;
  listed.forEach((term, index) => {
    total += term.product;
    const known = index < done;
    made.append(element("tr", {}, ...[term.index, text(term.value), text(term.weight), known ? text(term.product) : "", known ? text(total) : ""]
      .map((words) => element("td", { textContent: words, className: filling && index === done - 1 ? "now" : "" }))));
  });
  return element("div", { className: "scroll" }, made);
}

function linearBackX(layer, now, state, view) {
  const [output] = state.place, g = at(now.grad_y, output), full = linearGradX(now, Infinity), partial = linearGradX(now, view.filled);
  paintSide(view.input, stripOf(partial), { limit: largestOf(full) });
  paintSide(view.output, stripOf(now.grad_y.values), { spots: [cellOf(now.grad_y, state.place)] });
  view.aboutInput.textContent = state.filling ? `gradient of x: the sum over outputs 0 to ${output}` : "gradient of x: the sum over all outputs";
  view.aboutOutput.textContent = "g: the upstream gradient";
  view.result.replaceChildren(line(`Output ${output} adds its gradient ${text(g)} times its ${now.x.values.length} weights to the gradient of x.`, "running"));
}

function linearBackW(layer, now, state, view) {
  const [output] = state.place, g = at(now.grad_y, output), x = now.x.values, rows = Math.min(now.weight.shape[0], view.filled);
  const values = Float64Array.from({ length: now.weight.shape[0] * x.length }, (_, index) => now.grad_y.values[Math.floor(index / x.length)] * x[index % x.length]);
  paintSide(view.input, { height: now.weight.shape[0], width: x.length, values }, { filled: rows * x.length, limit: largestOf(values) });
  paintSide(view.output, stripOf(now.grad_y.values), { spots: [cellOf(now.grad_y, state.place)] });
  view.aboutInput.textContent = "gradient of w: a row for each output, a column for each input";
  view.aboutOutput.textContent = "g: the upstream gradient";
  const largest = x.reduce((best, value, index) => Math.abs(value) > Math.abs(x[best]) ? index : best, 0);
  view.result.replaceChildren(line(`Row ${output} is the gradient ${text(g)} times the inputs: for input ${largest}, the largest, ${text(g)} × ${text(x[largest])} = ${text(g * x[largest])}.`, "running"));
}
