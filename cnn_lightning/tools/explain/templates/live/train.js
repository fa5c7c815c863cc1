// Training in the page: plain SGD on the training pictures, or on the picture shown where there are none.

const training = {};
if (live) {
  const { net } = live, CHUNK = 8;  // pictures computed at once: between chunks the page can do other things
  const pictures = engine.pictures(data.live.train), tests = engine.pictures(data.live.test);
  const start = net.layers.map(({ weight, bias }) => ({ weight: weight?.slice(), bias: bias?.slice() }));
  const gradients = engine.gradients(net), batches = new Map();
  let order = [], random = randomNumbers(0);

  training.gradients = gradients;
  training.rate = 0;  // of the last step; 0 before the first one

  // Numbers from 0 to 1 that depend on the seed alone (mulberry32).
  function randomNumbers(seed) {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let mixed = Math.imul(state ^ (state >>> 15), state | 1);
      mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
      return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
    };
  }

  // The next n pictures, in a random order that begins again when all were used.
  function next(n) {
    if (!pictures.length) return [{ pixels: shown.pixels, label: shown.label }];
    while (order.length < n) {
      const more = pictures.map((_, index) => index);
      for (let i = more.length - 1; i > 0; i--) {
        const other = Math.floor(random() * (i + 1));
        [more[i], more[other]] = [more[other], more[i]];
      }
      order.push(...more);
    }
    return order.slice(0, n).map((index) => pictures[index]);
  }

  function arraysFor(n) {
    if (!batches.has(n)) batches.set(n, engine.batch(net, n, gradients));
    return batches.get(n);
  }

  // Runs the pictures forward, chunk by chunk, and gives each chunk with its labels; `after` sees each chunk.
  function* chunks(chosen, after) {
    for (let first = 0; first < chosen.length; first += CHUNK) {
      const some = chosen.slice(first, first + CHUNK), batch = arraysFor(some.length);
      some.forEach(({ pixels }, index) => engine.normalise(data.live, pixels, pixels.values, batch.steps[0].x, index * pixels.values.length));
      engine.forward(net, batch);
      after(batch, some.map(({ label }) => label));
      yield;
    }
  }

  const finish = (work) => { while (!work.next().done); };

  function lossOf(chosen) {
    let total = 0;
    finish(chunks(chosen, (batch, labels) => { total += engine.loss(net, batch, labels); }));
    return total / chosen.length;
  }

  // Computes loss and gradients of pictures; returns the loss. A generator: each `yield` is a moment to pause.
  function* backward(chosen) {
    for (const { weight, bias } of gradients) { weight?.fill(0); bias?.fill(0); }
    const scale = live.wrong.has("mean") ? 1 : 1 / chosen.length;
    let total = 0;
    yield* chunks(chosen, (batch, labels) => {
      total += engine.loss(net, batch, labels);
      engine.backward(net, batch, labels, scale, live.wrong);
    });
    return total / chosen.length;
  }

  // One step: {before: the loss, after(): the loss of the same pictures with the new weights, n}.
  training.step = function* (n, rate) {
    const chosen = next(n), before = yield* backward(chosen);
    order = order.slice(chosen.length);
    net.layers.forEach((layer, index) => {
      for (const name of ["weight", "bias"]) {
        const values = layer[name], gradient = gradients[index][name];
        if (values) for (let i = 0; i < values.length; i++) values[i] -= rate * gradient[i];
      }
    });
    training.rate = rate;
    return { before, after: () => lossOf(chosen), n: chosen.length };
  };

  // The derivative of the next batch's loss by one weight, numerically and as the backward has it.
  training.difference = (n, layer, place) => {
    const chosen = next(n), { weight } = net.layers[layer], value = weight[place], h = 1e-5;
    weight[place] = value + h;
    const above = lossOf(chosen);
    weight[place] = value - h;
    const below = lossOf(chosen);
    weight[place] = value;
    const kept = gradients.map((each) => ({ weight: each.weight?.slice(), bias: each.bias?.slice() }));
    finish(backward(chosen));
    const found = gradients[layer].weight[place];
    gradients.forEach((each, index) => { each.weight?.set(kept[index].weight); each.bias?.set(kept[index].bias); });
    return { numerical: (above - below) / (2 * h), backward: found, h };
  };

  // The number of test pictures whose largest output is the right one.
  training.right = () => {
    let right = 0;
    finish(chunks(tests, ({ n, logits }, labels) => {
      const classes = logits.length / n;
      labels.forEach((label, index) => {
        const scores = logits.subarray(index * classes, (index + 1) * classes);
        right += scores.indexOf(Math.max(...scores)) === label;
      });
    }));
    return [right, tests.length];
  };

  // Weights as they were when the page was opened, or random ones: uniform within 1 / sqrt(inputs of an output), as torch begins.
  training.reset = (seed = null) => {
    order = [];
    random = randomNumbers(seed ?? 0);
    const numbers = randomNumbers((seed ?? 0) + 1);
    net.layers.forEach((layer, index) => {
      if (!layer.weight) return;
      const bound = 1 / Math.sqrt(layer.weight.length / layer.shapes.weight[0]);
      for (const name of ["weight", "bias"]) {
        const values = layer[name];
        if (values) values.set(seed === null ? start[index][name] : values.map(() => bound * (2 * numbers() - 1)));
      }
    });
    training.rate = 0;
  };
}
