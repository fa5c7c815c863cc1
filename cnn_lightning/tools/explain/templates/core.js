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

function sum(values) {
  return values.reduce((a, b) => a + b, 0);
}

// ---- what is shown: one picture, forward and backward

// The entries of `data.layers` by label, in the order of computation.
const layers = new Map(data.layers.map((layer) => [layer.label, layer]));

// `shown.layers[label]` has the arrays of a layer, without the batch axis: x, y, grad_x, grad_y, weight, bias,
// grad_weight, grad_bias; those that are known. `label` is the class of the picture, `known` whether it is the true one.
// `name` says which picture it is.
const shown = {
  layers: Object.fromEntries(data.layers.map((layer) => [layer.label, lazily(layer.arrays)])),
  pixels: unpack(data.picture.pixels),
  probabilities: unpack(data.picture.probabilities).values,
  loss: data.picture.loss,
  label: data.picture.label,
  known: data.picture.known,
  name: data.picture.name,
};

// Arrays that are unpacked when they are first read: those of a deep network take time.
function lazily(packed) {
  const made = {};
  for (const [name, value] of Object.entries(packed)) {
    Object.defineProperty(made, name, {
      configurable: true,
      enumerable: true,
      get() {
        const unpacked = unpack(value);
        Object.defineProperty(made, name, { value: unpacked, enumerable: true });
        return unpacked;
      },
    });
  }
  return made;
}

// Views show parts of `shown`. They are called once, and again after each change of it.
const views = [];

function whenShown(view) {
  views.push(view);
  view();
}

function show(changes) {
  Object.assign(shown, changes);
  views.forEach((view) => view());
}

// ---- what is picked: one number in the output of one layer

// `place` is [channel, row, column], or [index] in a vector.
const picked = { label: null, place: [] };
const followers = [];

function whenPicked(follower) {
  followers.push(follower);
}

function pick(label, place) {
  Object.assign(picked, { label, place });
  followers.forEach((follower) => follower());
}
