// Windows of convolutions and poolings, and the numbers under them.

// The first pixel of window (row, column) in the input, and the window's box inside the borders of the input.
function windowOf(layer, shape, row, column) {
  const places = [row, column].map((each, axis) => each * layer.stride[axis] - layer.padding[axis]);
  const ends = places.map((each, axis) => each + layer.dilation[axis] * (layer.kernel[axis] - 1) + 1);
  const box = [...places.map((each) => Math.max(0, each)), ...ends.map((each, axis) => Math.min(shape[axis + 1], each))];
  return { places, box };
}

function pixelOf(layer, places, i, j) {
  return [places[0] + i * layer.dilation[0], places[1] + j * layer.dilation[1]];
}

function isInside(shape, [row, column]) {
  return row >= 0 && column >= 0 && row < shape[1] && column < shape[2];
}

// The pixels of a window by row and column; null in the padding.
function patchOf(layer, x, channel, places) {
  return Array.from({ length: layer.kernel[0] }, (_, i) => Array.from({ length: layer.kernel[1] }, (_, j) => {
    const pixel = pixelOf(layer, places, i, j);
    return isInside(x.shape, pixel) ? at(x, channel, ...pixel) : null;
  }));
}

// The place in a patch of the value that max-pooling takes: of equal values the first.
function winnerOf(patch) {
  let won = null;
  patch.forEach((line, i) => line.forEach((value, j) => {
    if (value !== null && (won === null || value > patch[won[0]][won[1]])) won = [i, j];
  }));
  return won;
}

// The input channel that kernel channel `index` of output channel `channel` sees.
function inputOf(layer, now, channel, index) {
  return Math.floor(channel / (layer.of / layer.groups)) * now.weight.shape[1] + index;
}

function mapOf(array, channel) {
  const [, height, width] = array.shape;
  return { height, width, values: array.values.subarray(channel * height * width, (channel + 1) * height * width) };
}

// A vector as rows of at most 16.
function stripOf(values) {
  const width = Math.min(16, values.length);
  return { height: Math.ceil(values.length / width), width, values };
}

function largestOf(values) {
  return values.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1;
}
