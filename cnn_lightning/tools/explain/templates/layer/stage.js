// What all pickers of layers have in common: the input's side, the output's side, the choice of a place, and a player.

function rgb(value, limit) {
  return `rgb(${colorOf(value, limit).join(",")})`;
}

// Black or white, whichever is read better on the colour of a value.
function inkOn(value, limit) {
  const [red, green, blue] = colorOf(value, limit);
  return 0.3 * red + 0.59 * green + 0.11 * blue > 140 ? "#111" : "#fff";
}

// Rows of numbers in the colours of their values. `options`: role; limit; now = [row, column] of a current cell; won;
// done, the number of cells that are known, from the first on.
function table(rows, { role = "", limit, now, won, done = Infinity } = {}) {
  const scale = limit || largestOf(rows.flat().map((value) => value ?? 0));
  const is = (place, r, c) => place && place[0] === r && place[1] === c;
  const made = element("table", { className: `cells${rows[0].length > 4 ? " large" : ""}` });
  if (role) made.dataset.role = role;
  rows.forEach((row, r) => made.append(element("tr", {}, ...row.map((value, c) => {
    const known = r * row.length + c < done;
    const cell = element("td", { textContent: !known ? " " : value === null ? "pad" : text(value) + (is(won, r, c) ? " ★" : "") });
    cell.className = [is(won, r, c) && "won", is(now, r, c) && "now", value === null && "pad"].filter(Boolean).join(" ");
    if (known && value !== null) Object.assign(cell.style, { background: rgb(value, scale), color: inkOn(value, scale) });
    return cell;
  }))));
  const box = element("div", { className: "scroll" }, made);
  if (rows[0].length > 4) box.tabIndex = 0;
  return box;
}

function titled(title, child, role = "") {
  const made = element("div", { className: role && `role-${role.slice(-1)}` }, element("span", { textContent: title }), child);
  if (role) made.dataset.role = role;
  return made;
}

function line(words, className = "") {
  return element("p", { className, textContent: words });
}

// ---- equations that are true as they are printed

function digits(value, count) {
  const magnitude = Math.abs(value);
  const small = magnitude !== 0 && (magnitude < 1e-3 || magnitude >= 1e5);
  return (small ? value.toExponential(count - 2) : String(+value.toPrecision(count))).replaceAll("-", "−");
}

function numberIn(printed) {
  return +printed.replaceAll("−", "-");
}

// The numbers and the result as texts. The numbers have as many digits, from four on, as it takes that the result is
// true as it is printed.
function equation(numbers, result, compute) {
  const total = text(result);
  for (let count = 4; ; count++) {
    const printed = numbers.map((value) => digits(value, count));
    if (count === 12 || text(compute(...printed.map(numberIn))) === total) return [...printed, total];
  }
}

// ---- maps

// Paints a map {height, width, values}. `options`: limit; grey, for a picture; filled, the number of cells that are
// known; frame = [top, left, bottom, right]; spots and crosses = [[row, column], ...].
function paintSide(canvas, { height, width, values }, { limit, grey = false, filled = Infinity, frame, spots = [], crosses = [] } = {}) {
  const zoom = Math.max(1, Math.floor(224 / Math.max(height, width)));
  canvas.width = width * zoom;
  canvas.height = height * zoom;
  const pen = canvas.getContext("2d"), scale = limit || largestOf(values);
  const low = grey ? values.reduce((a, b) => Math.min(a, b)) : 0, range = grey ? Math.max(values.reduce((a, b) => Math.max(a, b)) - low, 1e-30) : 1;
  paintCellColors(pen, height, width, zoom, (index) => {
    if (index >= Math.min(values.length, filled)) return null;
    if (!grey) return colorOf(values[index], scale);
    const level = Math.round((255 * (values[index] - low)) / range);
    return [level, level, level];
  });
  for (const [color, thick] of [["#000", 4], ["#fff", 2]]) {
    pen.strokeStyle = color;
    pen.lineWidth = thick;
    if (frame) outline(pen, frame.map((each) => each * zoom));
    spots.forEach(([row, column]) => outline(pen, [row, column, row + 1, column + 1].map((each) => each * zoom)));
    crosses.forEach(([row, column]) => crossOut(pen, (column + 0.5) * zoom, (row + 0.5) * zoom, Math.max(2, zoom / 3)));
  }
}

// Paints a map of colours, `zoom` pixels a cell; a cell without a colour stays transparent.
const cells = document.createElement("canvas");

function paintCellColors(pen, height, width, zoom, colorAt) {
  const image = new ImageData(width, height);
  for (let index = 0; index < height * width; index++) {
    const color = colorAt(index);
    if (color) image.data.set([...color, 255], 4 * index);
  }
  cells.width = width;
  cells.height = height;
  cells.getContext("2d").putImageData(image, 0, 0);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(cells, 0, 0, width * zoom, height * zoom);
}

function outline(pen, [top, left, bottom, right]) {
  pen.strokeRect(left + 1, top + 1, right - left - 2, bottom - top - 2);
}

function crossOut(pen, x, y, reach) {
  pen.beginPath();
  pen.moveTo(x - reach, y - reach); pen.lineTo(x + reach, y + reach);
  pen.moveTo(x + reach, y - reach); pen.lineTo(x - reach, y + reach);
  pen.stroke();
}

// ---- the choice of a place

// Number fields, one for each of `limits`; `choose` is called with their values. A number that is not allowed is changed
// to the nearest that is, and the page says so.
function controls(limits, choose) {
  const allowed = element("p", { className: "allowed" });
  allowed.setAttribute("role", "status");
  const inputs = Object.entries(limits).map(([name, limit]) => element("input", { type: "number", name, min: 0, max: limit - 1, value: 0, inputMode: "numeric" }));
  const nearest = (input) => Math.min(Math.max(Math.trunc(+input.value) || 0, 0), +input.max);
  inputs.forEach((input) => {
    input.addEventListener("input", () => choose(inputs.map(nearest)));
    input.addEventListener("change", () => {
      const given = input.value, value = nearest(input);
      allowed.textContent = String(value) === given.trim() ? "" : `${input.name}: expected 0 to ${input.max}, got ${given || "nothing"}; it is now ${value}.`;
      input.value = value;
    });
  });
  // A field in which one types is left alone until it changes.
  const set = (place) => inputs.forEach((input, axis) => { if (input !== document.activeElement) input.value = place[axis]; });
  const fields = element("p", { className: "controls" }, ...inputs.map((input) => element("label", {}, `${input.name} (0 to ${input.max}) `, input)));
  return { elements: [fields, allowed], fields, set };
}

// Makes a canvas a control: a click or an arrow key chooses a cell. `sizes` gives its height and width in cells.
function clickable(canvas, sizes, current, choose) {
  canvas.className = "clickable";
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  const bounded = (row, column) => {
    const [height, width] = sizes();
    choose(Math.min(Math.max(row, 0), height - 1), Math.min(Math.max(column, 0), width - 1));
  };
  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect(), [height, width] = sizes();
    bounded(Math.floor(((event.clientY - box.top) / box.height) * height), Math.floor(((event.clientX - box.left) / box.width) * width));
  });
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    const [row, column] = current();
    bounded(row + move[0], column + move[1]);
  });
}

// ---- the stage

const FORWARD = { words: "forward: y", roles: ["x", "y"] };
const BACK_TO_X = { words: "backward: gradient of x", roles: ["dx", "g"] };

// The picker of a layer. `kind` has
//   passes: {name: {words, roles}}, the ways to go through the layer, with the roles of the input's and the output's side;
//   terms(layer, now, state): the number of terms that make one cell;
//   paint(layer, now, state, stage): shows a state;
//   more(layer, now, change): further elements for the controls, which change the state; or nothing;
//   whole(layer, now, state): what else belongs to the state of a whole cell and stays while cells fill; or nothing.
// A state is {pass, place, term, filling}: the cell at `place` has its first `term` terms, and if it is filling, the
// cells after it are still empty. All that is shown follows from the state and the arrays `now`.
function stage(root, layer, kind) {
  const now = () => shown.layers[layer.label];
  const shape = now().y.shape, count = shape.length === 1 ? shape[0] : shape[1] * shape[2];
  const state = { pass: Object.keys(kind.passes)[0], place: middle(shape), term: 0, filling: false };
  const terms = () => kind.terms(layer, now(), state);
  const position = () => shape.length === 1 ? state.place[0] : state.place[1] * shape[2] + state.place[2];
  const placeOf = (index) => shape.length === 1 ? [index] : [state.place[0], Math.floor(index / shape[2]), index % shape[2]];

  const input = element("canvas"), output = element("canvas"), way = element("span", { className: "way", ariaHidden: "true" });
  const aboutInput = element("div", { className: "about" }), aboutOutput = element("div", { className: "about" });
  const inputSide = element("div", { className: "named" }, input, aboutInput), outputSide = element("div", { className: "named" }, output, aboutOutput);
  const result = element("div", { className: "result", ariaLive: "polite" });
  input.setAttribute("role", "img");

  const choice = controls(shape.length === 1 ? { output: shape[0] } : { channel: shape[0], row: shape[1], column: shape[2] }, choose);
  const grid = () => { const { height, width } = sideOf({ shape, values: now().y.values }, 0); return [height, width]; };
  clickable(output, grid, () => {
    const [, width] = grid();
    return [Math.floor(position() / width), position() % width];
  }, (row, column) => choose(placeOf(Math.min(row * grid()[1] + column, count - 1))));

  const steps = {
    at: () => position() * terms() + (state.filling ? state.term : 0),
    last: () => count * terms(),
    go(step) {
      const each = terms(), index = Math.max(0, Math.ceil(step / each) - 1);
      Object.assign(state, { place: placeOf(index), term: step - index * each, filling: true });
      render();
    },
    begin() {
      steps.go(state.filling && steps.at() < steps.last() ? steps.at() : 0);
    },
    rest() {
      result.setAttribute("aria-live", "polite");
      tell();
    },
  };
  const control = player(root, steps);
  const passes = element("p", { className: "passes" }, ...Object.entries(kind.passes).map(([name, { words }]) => {
    const made = element("button", { type: "button", textContent: words });
    made.dataset.pass = name;
    made.addEventListener("click", () => { state.pass = name; whole(state.place); });
    return made;
  }));
  passes.setAttribute("role", "group");
  passes.setAttribute("aria-label", "direction");
  if (kind.more) choice.fields.append(...kind.more(layer, now(), (changes) => { Object.assign(state, changes); render(); }));
  root.append(...choice.elements);
  if (layer.of > shape[0]) root.append(line(`The first ${shape[0]} of ${layer.of} ${shape.length === 1 ? "outputs" : "output channels"} can be chosen here.`));
  root.append(passes, control.element, element("div", { className: "sides" }, inputSide, way, outputSide), result);

  function whole(place) {
    Object.assign(state, { place, filling: false });
    render();
  }
  function choose(place) {
    whole(place);
    tell();
  }
  function tell() {
    if (picked.label !== layer.label || String(picked.place) !== String(state.place)) pick(layer.label, state.place);
  }
  function render() {
    const arrays = now();
    if (!arrays.y) return;
    if (!state.filling) Object.assign(state, { term: terms() }, kind.whole?.(layer, arrays, state));
    choice.set(state.place);
    passes.querySelectorAll("button").forEach((button) => {
      button.setAttribute("aria-pressed", button.dataset.pass === state.pass);
      button.disabled = button.dataset.pass !== "forward" && !arrays.grad_y;
    });
    [inputSide, outputSide].forEach((side, index) => mark(side, kind.passes[state.pass].roles[index]));
    way.textContent = state.pass === "forward" ? "→" : "←";
    if (control.isPlaying()) result.setAttribute("aria-live", "off");
    const done = position() + (state.term >= terms() ? 1 : 0);
    kind.paint(layer, arrays, state, { input, output, aboutInput, aboutOutput, result, filled: state.filling ? done : Infinity, steps: state.filling ? steps.at() : Infinity });
    output.setAttribute("aria-label", `${aboutOutput.textContent}. Cell ${state.place.join(", ")} is chosen. Click a cell, or use the arrow keys.`);
    input.setAttribute("aria-label", aboutInput.textContent);
    control.update();
  }

  whenPicked(() => {
    const place = tracedPlace(layer.label);
    if (place && String(place) !== String(state.place) && place.every((each, axis) => each < shape[axis])) whole(place);
  });
  const start = tracedPlace(layer.label);
  if (start && start.every((each, axis) => each < shape[axis])) state.place = start;
  whenShown(render);
}

function mark(side, role) {
  side.dataset.role = role;
  side.className = `named role-${role.slice(-1)}`;
}

function middle(shape) {
  return shape.length === 1 ? [0] : [0, Math.floor(shape[1] / 2), Math.floor(shape[2] / 2)];
}

// One channel of an array as a map, or a vector as a strip.
function sideOf(array, channel) {
  return array.shape.length === 1 ? stripOf(array.values) : mapOf(array, channel);
}

// The cell of a place in the map that `sideOf` gives.
function cellOf(array, place) {
  const width = sideOf(array, 0).width;
  return array.shape.length === 1 ? [Math.floor(place[0] / width), place[0] % width] : place.slice(1);
}
