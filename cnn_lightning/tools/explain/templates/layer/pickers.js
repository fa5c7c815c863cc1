// The interactive part of each layer: choose an output, and see the numbers that make it.

const STAGES = { conv: CONV, pool: POOL, linear: LINEAR, relu: EACH, scale: EACH, copy: EACH, flatten: EACH };

function beginPicker(root, layer) {
  if (layer.picker === "softmax") pickSoftmax(root, layer);
  else stage(root, layer, STAGES[layer.picker]);
}

// A picker is made when its layer is opened: unpacking the numbers of a deep network takes time.
document.querySelectorAll(".picker").forEach((picker) => {
  const section = picker.closest("details"), layer = layers.get(picker.dataset.layer);
  function begin() {
    if (!section.open || picker.dataset.ready || !shown.layers[layer.label]?.x) return;
    picker.dataset.ready = "yes";
    beginPicker(picker, layer);
  }
  section.addEventListener("toggle", begin);
  whenShown(begin);
});
