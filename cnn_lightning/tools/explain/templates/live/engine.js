// The network in the page: forward and backward of a batch, in numbers of 64 bits.

const engine = {};
{
  const size = (shape) => shape.reduce((a, b) => a * b, 1);
  const wide = (packed) => packed ? Float64Array.from(unpack(packed).values) : null;

  // The layers with their own copy of the weights, which training changes; `weight` and `bias` are null where there are none.
  engine.network = (description) => ({
    loss: description.loss,
    layers: description.layers.map((layer) => ({
      ...layer,
      weight: wide(layer.weight),
      bias: wide(layer.bias),
      windows: layer.kind === "pool" ? windowsOf(layer) : null,
      shapes: { weight: layer.weight?.shape, bias: layer.bias?.shape },
    })),
  });

  // The gradients of the weights, which `engine.backward` adds to.
  engine.gradients = (net) => net.layers.map(({ weight, bias }) => ({
    weight: weight && new Float64Array(weight.length),
    bias: bias && new Float64Array(bias.length),
  }));

  // The arrays of a batch of n pictures. A layer's input is the output of the one before; `steps[0].x` takes the pictures.
  engine.batch = (net, n, gradients = engine.gradients(net)) => {
    const floats = (shape) => new Float64Array(n * size(shape));
    let x = floats(net.layers[0].x), gradX = floats(net.layers[0].x);
    const steps = net.layers.map((layer, index) => {
      const same = layer.kind === "same";
      const step = {
        x, gradX,
        y: same ? x : floats(layer.y),
        gradY: same ? gradX : floats(layer.y),
        winners: layer.kind === "pool" ? new Int32Array(n * size(layer.y)) : null,
        gradWeight: gradients[index].weight,
        gradBias: gradients[index].bias,
      };
      ({ y: x, gradY: gradX } = step);
      return step;
    });
    const columns = net.layers.map((layer) => layer.kind === "conv" ? size(layer.shapes.weight.slice(1)) * layer.y[1] * layer.y[2] : 0);
    return { n, steps, logits: x, gradLogits: gradX, probabilities: new Float64Array(x.length), columns: new Float64Array(Math.max(...columns)) };
  };

  // C[i, j] += sum over k of A[i, k] B[k, j]. A matrix is an array, the index of its first number, and its two strides.
  function addProduct(m, n, terms, A, a0, ai, ak, B, b0, bk, bj, C, c0, ci, cj) {
    const m4 = m - m % 4, n2 = n - n % 2;
    for (let i = 0; i < m4; i += 4) {
      for (let j = 0; j < n2; j += 2) {  // 4 x 2 sums at once: each number is read from memory less often
        let s00 = 0, s01 = 0, s10 = 0, s11 = 0, s20 = 0, s21 = 0, s30 = 0, s31 = 0, a = a0 + i * ai, b = b0 + j * bj;
        for (let k = 0; k < terms; k++, a += ak, b += bk) {
          const left = B[b], right = B[b + bj];
          let value = A[a];
          s00 += value * left; s01 += value * right;
          value = A[a + ai];
          s10 += value * left; s11 += value * right;
          value = A[a + 2 * ai];
          s20 += value * left; s21 += value * right;
          value = A[a + 3 * ai];
          s30 += value * left; s31 += value * right;
        }
        let c = c0 + i * ci + j * cj;
        C[c] += s00; C[c + cj] += s01; c += ci;
        C[c] += s10; C[c + cj] += s11; c += ci;
        C[c] += s20; C[c + cj] += s21; c += ci;
        C[c] += s30; C[c + cj] += s31;
      }
    }
    for (let i = 0; i < m; i++) {
      for (let j = i < m4 ? n2 : 0; j < n; j++) {
        let found = 0, a = a0 + i * ai, b = b0 + j * bj;
        for (let k = 0; k < terms; k++, a += ak, b += bk) found += A[a] * B[b];
        C[c0 + i * ci + j * cj] += found;
      }
    }
  }

  // Copies the pixels under each tap of the kernel to a row of `columns`, 0 for padding; `back` adds the rows to the pixels.
  function moveColumns(layer, pixels, first, columns, back) {
    const [channels, height, width] = layer.x, [, rows, across] = layer.y;
    let place = 0;
    for (let channel = 0; channel < channels / layer.groups; channel++) {
      for (let i = 0; i < layer.kernel[0]; i++) {
        for (let j = 0; j < layer.kernel[1]; j++) {
          for (let r = 0; r < rows; r++) {
            const row = r * layer.stride[0] - layer.padding[0] + i * layer.dilation[0];
            const line = first + (channel * height + row) * width;
            for (let u = 0; u < across; u++, place++) {
              const column = u * layer.stride[1] - layer.padding[1] + j * layer.dilation[1];
              const inside = row >= 0 && row < height && column >= 0 && column < width;
              if (!back) columns[place] = inside ? pixels[line + column] : 0;
              else if (inside) pixels[line + column] += columns[place];
            }
          }
        }
      }
    }
  }

  // Calls visit(first pixel, first output, first output channel) for each picture and group of a convolution.
  function eachGroup(layer, n, visit) {
    const x = size(layer.x), y = size(layer.y), { groups } = layer;
    for (let picture = 0; picture < n; picture++) {
      for (let group = 0; group < groups; group++) visit(picture * x + group * x / groups, picture * y + group * y / groups, group * layer.y[0] / groups);
    }
  }

  // The kernels of a convolution turned by half a circle.
  function flipped(layer) {
    const taps = layer.kernel[0] * layer.kernel[1];
    return layer.weight.map((_, index) => layer.weight[index - (index % taps) + taps - 1 - (index % taps)]);
  }

  // The pixels of each window of a pooling in a map, -1 for those outside.
  function windowsOf(layer) {
    const [, height, width] = layer.x, [, rows, across] = layer.y, found = [];
    for (let place = 0; place < rows * across; place++) {
      for (let tap = 0; tap < layer.kernel[0] * layer.kernel[1]; tap++) {
        const row = Math.floor(place / across) * layer.stride[0] - layer.padding[0] + Math.floor(tap / layer.kernel[1]) * layer.dilation[0];
        const column = (place % across) * layer.stride[1] - layer.padding[1] + (tap % layer.kernel[1]) * layer.dilation[1];
        found.push(row >= 0 && row < height && column >= 0 && column < width ? row * width + column : -1);
      }
    }
    return Int32Array.from(found);
  }

  // `wrong` names the terms of the backward that are left out.
  const KINDS = {
    conv: {
      forward(layer, step, { n, columns }) {
        const outputs = layer.y[0] / layer.groups, places = layer.y[1] * layer.y[2], taps = size(layer.shapes.weight.slice(1));
        eachGroup(layer, n, (x, y, channel) => {
          moveColumns(layer, step.x, x, columns, false);
          for (let o = 0; o < outputs; o++) step.y.fill(layer.bias ? layer.bias[channel + o] : 0, y + o * places, y + (o + 1) * places);
          addProduct(outputs, places, taps, layer.weight, channel * taps, taps, 1, columns, 0, places, 1, step.y, y, places, 1);
        });
      },
      backward(layer, step, { n, columns }, wrong) {
        const outputs = layer.y[0] / layer.groups, places = layer.y[1] * layer.y[2], taps = size(layer.shapes.weight.slice(1));
        const kernels = wrong.has("flip") ? flipped(layer) : layer.weight;
        const middle = (layer.y[1] >> 1) * layer.y[2] + (layer.y[2] >> 1);
        const [from, count] = wrong.has("positions") ? [middle, 1] : [0, places];
        step.gradX.fill(0);
        eachGroup(layer, n, (x, y, channel) => {
          moveColumns(layer, step.x, x, columns, false);
          addProduct(outputs, taps, count, step.gradY, y + from, places, 1, columns, from, 1, places, step.gradWeight, channel * taps, taps, 1);
          for (let o = 0; o < outputs && layer.bias; o++) {
            for (let p = from; p < from + count; p++) step.gradBias[channel + o] += step.gradY[y + o * places + p];
          }
          columns.fill(0, 0, taps * places);
          addProduct(taps, places, outputs, kernels, channel * taps, 1, taps, step.gradY, y, places, 1, columns, 0, places, 1);
          moveColumns(layer, step.gradX, x, columns, true);
        });
      },
    },
    linear: {
      forward(layer, step, { n }) {
        const [inputs] = layer.x, [outputs] = layer.y;
        for (let i = 0; i < step.y.length; i++) step.y[i] = layer.bias ? layer.bias[i % outputs] : 0;
        addProduct(n, outputs, inputs, step.x, 0, inputs, 1, layer.weight, 0, 1, inputs, step.y, 0, outputs, 1);
      },
      backward(layer, step, { n }) {
        const [inputs] = layer.x, [outputs] = layer.y;
        step.gradX.fill(0);
        addProduct(outputs, inputs, n, step.gradY, 0, 1, outputs, step.x, 0, inputs, 1, step.gradWeight, 0, inputs, 1);
        for (let i = 0; i < step.gradY.length && layer.bias; i++) step.gradBias[i % outputs] += step.gradY[i];
        addProduct(n, inputs, outputs, step.gradY, 0, outputs, 1, layer.weight, 0, inputs, 1, step.gradX, 0, inputs, 1);
      },
    },
    relu: {
      forward(layer, { x, y }) {
        for (let i = 0; i < x.length; i++) y[i] = x[i] <= 0 ? 0 : x[i];  // NaN stays
      },
      backward(layer, { x, gradX, gradY }, batch, wrong) {
        const all = wrong.has("mask");
        for (let i = 0; i < x.length; i++) gradX[i] = x[i] <= 0 && !all ? 0 : gradY[i];
      },
    },
    pool: {
      forward(layer, { x, y, winners }) {
        const { windows } = layer, places = layer.y[1] * layer.y[2], pixels = layer.x[1] * layer.x[2], taps = windows.length / places;
        for (let i = 0; i < y.length; i++) {
          const plane = Math.floor(i / places) * pixels, first = (i % places) * taps;
          let winner = -1;
          for (let tap = first; tap < first + taps; tap++) {
            if (windows[tap] < 0) continue;
            const pixel = plane + windows[tap], value = x[pixel];
            // Of equal pixels the first wins; NaN wins against all.
            if (winner < 0 || value > x[winner] || value !== value) winner = pixel;
          }
          winners[i] = winner;
          y[i] = x[winner];
        }
      },
      backward(layer, { gradX, gradY, winners }, batch, wrong) {
        const { windows } = layer, places = layer.y[1] * layer.y[2], pixels = layer.x[1] * layer.x[2], taps = windows.length / places;
        gradX.fill(0);
        for (let i = 0; i < gradY.length; i++) {
          if (!wrong.has("winner")) {
            gradX[winners[i]] += gradY[i];
            continue;
          }
          const plane = Math.floor(i / places) * pixels, first = (i % places) * taps;
          for (let tap = first; tap < first + taps; tap++) if (windows[tap] >= 0) gradX[plane + windows[tap]] += gradY[i];
        }
      },
    },
    same: { forward() {}, backward() {} },
  };
  // Computes the outputs for the pictures in `batch.steps[0].x`, and the probabilities.
  engine.forward = (net, batch) => {
    net.layers.forEach((layer, index) => KINDS[layer.kind].forward(layer, batch.steps[index], batch));
    const { logits, probabilities } = batch, classes = logits.length / batch.n;
    for (let first = 0; first < logits.length; first += classes) {
      let largest = -Infinity, total = 0;
      for (let k = first; k < first + classes; k++) largest = Math.max(largest, logits[k]);
      for (let k = first; k < first + classes; k++) total += probabilities[k] = Math.exp(logits[k] - largest);
      for (let k = first; k < first + classes; k++) probabilities[k] /= total;
    }
  };

  // The weight of class k in the target of a picture of class `label`.
  const target = (net, classes, label, k) => (k === label ? 1 - net.loss.smoothing : 0) + net.loss.smoothing / classes;

  // The sum of the losses of the pictures, after forward; `labels` are their classes.
  engine.loss = (net, { n, logits }, labels) => {
    const classes = logits.length / n;
    let found = 0;
    for (let picture = 0; picture < n; picture++) {
      const scores = logits.subarray(picture * classes, (picture + 1) * classes), largest = Math.max(...scores);
      const log = largest + Math.log(scores.reduce((total, score) => total + Math.exp(score - largest), 0));
      scores.forEach((score, k) => { found += target(net, classes, labels[picture], k) * (log - score); });
    }
    return found;
  };

  // Adds the gradients of `scale` times the sum of the losses; the terms named in `wrong` are left out.
  engine.backward = (net, batch, labels, scale, wrong) => {
    const { n, probabilities, gradLogits } = batch, classes = gradLogits.length / n;
    for (let i = 0; i < gradLogits.length; i++) {
      gradLogits[i] = scale * (probabilities[i] - target(net, classes, labels[Math.floor(i / classes)], i % classes));
    }
    fromLogits(net, batch, wrong);
  };

  // The backward from the gradients in `batch.gradLogits`.
  function fromLogits(net, batch, wrong) {
    for (let index = net.layers.length - 1; index >= 0; index--) {
      KINDS[net.layers[index].kind].backward(net.layers[index], batch.steps[index], batch, wrong);
    }
  }

  // ---- one picture

  const narrow = (shape, values) => ({ shape, values: Float32Array.from(values) });

  // The gradients of one logit by the output of each layer, for the picture.
  engine.ofLogit = (net, description, pixels, index) => {
    const batch = engine.batch(net, 1);
    engine.normalise(description, pixels, pixels.values, batch.steps[0].x);
    engine.forward(net, batch);
    batch.gradLogits[index] = 1;
    fromLogits(net, batch, new Set());
    return Object.fromEntries(net.layers.map((layer, place) => [layer.label, narrow(layer.y, batch.steps[place].gradY)]));
  };

  // Everything that `show` takes for a picture {shape, values}, values from 0 to 1; without a label, that of the prediction.
  engine.seen = (net, description, pixels, label, wrong) => {
    const batch = engine.batch(net, 1), { steps, logits, gradLogits } = batch;
    engine.normalise(description, pixels, pixels.values, steps[0].x);
    engine.forward(net, batch);
    const probabilities = Float32Array.from(batch.probabilities), known = label !== null;
    const guess = probabilities.indexOf(probabilities.reduce((a, b) => Math.max(a, b)));
    const target = known ? label : Math.max(guess, 0);
    const loss = engine.loss(net, batch, [target]);
    engine.backward(net, batch, [target], 1, wrong);
    const found = net.layers.map((layer, index) => [layer.label, arrays(layer, steps[index])]);
    const last = { x: narrow([logits.length], logits), y: narrow([], [loss]), grad_x: narrow([logits.length], gradLogits), grad_y: narrow([], [1]) };
    return { layers: Object.fromEntries([...found, [net.loss.label, last]]), pixels, probabilities, loss, label: target, known };
  };

  function arrays(layer, step) {
    const { weight, bias } = layer.shapes;
    return {
      x: narrow(layer.x, step.x), y: narrow(layer.y, step.y),
      grad_x: narrow(layer.x, step.gradX), grad_y: narrow(layer.y, step.gradY),
      ...(weight && { weight: narrow(weight, layer.weight), grad_weight: narrow(weight, step.gradWeight) }),
      ...(bias && { bias: narrow(bias, layer.bias), grad_bias: narrow(bias, step.gradBias) }),
    };
  }

  // Packed bytes as pictures: {pixels: {shape, values} from 0 to 1, label}.
  engine.pictures = (packed) => {
    if (!packed) return [];
    const bytes = atob(packed.base64), [, ...shape] = packed.shape, each = size(shape);
    return packed.labels.map((label, index) => ({
      label,
      pixels: { shape, values: Float32Array.from({ length: each }, (_, place) => bytes.charCodeAt(index * each + place) / 255) },
    }));
  };

  // Writes the network's input for a picture (C, H, W) with values from 0 to 1 to `x`, from index `first` on.
  engine.normalise = ({ mean, std }, { shape }, values, x, first = 0) => {
    const plane = shape[1] * shape[2];
    for (let i = 0; i < values.length; i++) {
      const channel = Math.floor(i / plane);
      x[first + i] = (values[i] - mean[channel]) / std[channel];
    }
  };
}

// ---- the network of this page, null on a page whose numbers are fixed

// `wrong` has the terms that are left out of the backward; `weights` says how the weights were changed here.
const live = data.live && { net: engine.network(data.live), wrong: new Set(), weights: "" };

// Shows a picture, or the one shown now with weights that have changed: pixels {shape, values} from 0 to 1, label or null.
function showPicture(pixels = shown.pixels, label = shown.known ? shown.label : null, name = shown.name) {
  show({ ...engine.seen(live.net, data.live, pixels, label, live.wrong), name });
}

if (live) showPicture();
