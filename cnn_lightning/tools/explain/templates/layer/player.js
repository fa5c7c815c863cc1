// A player of steps: buttons, keys and a speed. It draws nothing; `steps` says where it is and goes to a step.

const SPEEDS = { slow: 2, normal: 8, fast: 40, "very fast": 200 }; // steps a second
const lessMotion = matchMedia("(prefers-reduced-motion: reduce)");

// The whole steps that are due after `seconds`, and the part of a step that is left.
function due(left, seconds, speed) {
  const steps = left + seconds * speed;
  return { whole: Math.floor(steps), left: steps - Math.floor(steps) };
}

// `steps`: at() and last() are numbers of steps, go(step) shows one, begin() goes to where playing begins, and rest() is
// called when it has stopped. `root` is the element whose keys are heard.
function player(root, steps) {
  let playing = false, before = 0, left = 0;
  const button = (words, label, act) => {
    const made = element("button", { type: "button", textContent: words, ariaLabel: label });
    made.addEventListener("click", act);
    return made;
  };
  const speed = element("select", { ariaLabel: "speed" }, ...Object.keys(SPEEDS).map((name) => element("option", { textContent: name })));
  const start = button("|◀", "to the first step", () => jump(0));
  const back = button("◀ back", "one step back", () => jump(steps.at() - 1));
  const play = button("▶ play", "play", toggle);
  const step = button("step ▶", "one step on", () => jump(steps.at() + 1));
  const end = button("▶|", "to the last step", () => jump(steps.last()));
  const progress = element("progress", { ariaLabel: "steps done" });
  const made = element("div", { className: "player" }, start, back, play, step, end, element("label", {}, speed), progress);
  made.setAttribute("role", "group");
  made.setAttribute("aria-label", "player: space plays and pauses, the arrow keys go one step");
  speed.value = "normal";

  function jump(to) {
    playing = false;
    steps.go(Math.min(Math.max(to, 0), steps.last()));
    steps.rest();
    update();
  }

  function toggle() {
    if (lessMotion.matches) return jump(steps.at() + 1);
    playing = !playing;
    if (playing) {
      steps.begin();
      left = 0;
      requestAnimationFrame((now) => { before = now; requestAnimationFrame(tick); });
    } else {
      steps.rest();
    }
    update();
  }

  function tick(now) {
    if (!playing) return;
    const next = due(left, Math.min(now - before, 250) / 1000, SPEEDS[speed.value]);
    before = now;
    left = next.left;
    if (next.whole) steps.go(Math.min(steps.at() + next.whole, steps.last()));
    if (steps.at() >= steps.last()) {
      playing = false;
      steps.rest();
    }
    update();
    requestAnimationFrame(tick);
  }

  function update() {
    play.textContent = playing ? "⏸ pause" : "▶ play";
    play.ariaLabel = playing ? "pause" : lessMotion.matches ? "one step on, as less motion is asked for" : "play";
    progress.max = Math.max(1, steps.last());
    progress.value = steps.at();
    [start.disabled, back.disabled, step.disabled, end.disabled] = [false, steps.at() <= 0, steps.at() >= steps.last(), false];
  }

  root.addEventListener("keydown", (event) => {
    const target = event.target, field = ["INPUT", "SELECT", "BUTTON"].includes(target.tagName);
    if (event.key === " " && !field) toggle();
    else if (made.contains(target) && target !== speed && event.key === "ArrowRight") jump(steps.at() + 1);
    else if (made.contains(target) && target !== speed && event.key === "ArrowLeft") jump(steps.at() - 1);
    else return;
    event.preventDefault();
  });
  update();
  return { element: made, update, isPlaying: () => playing };
}
