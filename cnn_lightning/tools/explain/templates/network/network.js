// What the two forms of the network's picture share.

// A path of numbers through the network, [{label, place}, ...], which the picture marks.
const tracers = [];

function markTrace(path) {
  tracers.forEach((tracer) => tracer(path));
}

whenPicked(() => markTrace([{ ...picked }]));

// Goes to the section of a layer, and opens it.
function goTo(label) {
  location.hash = `#layer-${[...layers.keys()].indexOf(label)}`;
  unfold();
}
