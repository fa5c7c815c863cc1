// Layers whose every output depends on one input: ReLU, batch normalisation, copies, flatten.

// The place in the input of a place in the output.
function inputPlace(layer, place) {
  return layer.picker === "flatten" ? unflat(place[0], layer.in) : place;
}

function unflat(index, shape) {
  const place = [];
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    place.unshift(index % shape[axis]);
    index = Math.floor(index / shape[axis]);
  }
  return place;
}

function flat(place, shape) {
  return place.reduce((index, each, axis) => index * shape[axis] + each, 0);
}

// What the gradient of each output is multiplied by.
function slopeOf(layer, now, x, channel) {
  if (layer.picker === "relu") return x > 0 ? 1 : 0;
  return layer.picker === "scale" ? at(now.scale, channel) : 1;
}

const EACH = {
  passes: { forward: FORWARD, dx: BACK_TO_X },

  terms: () => 1,

  paint(layer, now, state, view) {
    const from = inputPlace(layer, state.place), forward = state.pass === "forward", [channel] = from, x = at(now.x, ...from);
    const slope = slopeOf(layer, now, x, channel), g = now.grad_y && at(now.grad_y, ...state.place);
    const before = sideOf(now.x, channel), spot = cellOf(now.x, from);
    if (forward) paintSide(view.input, before, { spots: [spot] });
    else paintSide(view.input, eachGradX(layer, now, channel, before, view.filled), { spots: [spot], limit: largestOf(now.grad_y.values) });
    paintSide(view.output, sideOf(forward ? now.y : now.grad_y, state.place[0]), { filled: forward ? view.filled : Infinity, spots: [cellOf(now.y, state.place)] });
    const about = layer.in.length === 1 ? "" : `, channel ${channel}`;
    view.aboutInput.textContent = (forward ? "x: the input" : "gradient of x") + about;
    view.aboutOutput.textContent = (forward ? "y: the output" : "g: the upstream gradient") + (state.place.length === 1 ? "" : about);
    view.result.replaceChildren(line(eachWords(layer, now, { x, y: at(now.y, ...state.place), g, slope, from, place: state.place, forward }), "sum"));
  },
};

// The gradient of the input, of which the first `cells` outputs are known.
function eachGradX(layer, now, channel, { height, width, values }, cells) {
  const size = height * width, offset = now.x.shape.length === 1 ? 0 : channel * size;
  return { height, width, values: Float64Array.from(values, (x, index) => {
    const known = layer.picker === "flatten" ? offset + index < cells : index < cells;
    return known ? now.grad_y.values[offset + index] * slopeOf(layer, now, x, channel) : 0;
  }) };
}

function eachWords(layer, now, { x, y, g, slope, from, place, forward }) {
  if (layer.picker === "flatten") return `output ${place[0]} is input (${from.join(", ")}): ${text(x)}; the gradient ${g === undefined ? "" : text(g)} goes back there`;
  if (layer.picker === "copy") return forward ? `y = x = ${text(x)}` : `the gradient ${text(g)} is passed on`;
  if (layer.picker === "scale") {
    const [first, second, third, total] = equation([slope, x, at(now.shift, place[0])], y, (a, b, c) => a * b + c);
    return forward ? `${first} × ${second} + ${third} = ${total}: in evaluation, the layer multiplies by γ / √(σ² + ε) and adds the rest` : `${text(slope)} × ${text(g)} = ${text(slope * g)}`;
  }
  const mask = x > 0 ? `${text(x)} > 0: mask 1` : `${text(x)} ≤ 0: mask 0`;
  return forward ? `${mask}; y = max(x, 0) = ${text(y)}` : `${mask}; gradient of x = mask × g = ${slope} × ${text(g)} = ${text(slope * g)}`;
}
