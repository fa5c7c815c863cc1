// Roles of variables: pointing at one lights it in the formula, in the code and in the numbers of its layer.

document.querySelectorAll(".layer").forEach((section) => {
  let kept = null;
  const light = (role) => {
    section.querySelectorAll(".lit").forEach((each) => each.classList.remove("lit"));
    if (role) section.querySelectorAll(`[data-role="${role}"]`).forEach((each) => each.classList.add("lit"));
  };
  const roleOf = (event) => event.target.closest("[data-role]")?.dataset.role;
  section.addEventListener("pointerover", (event) => light(roleOf(event) ?? kept));
  section.addEventListener("pointerleave", () => light(kept));
  section.addEventListener("focusin", (event) => light(roleOf(event) ?? kept));
  section.addEventListener("focusout", () => light(kept));
  section.querySelector(".legend")?.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    kept = kept === button.dataset.role ? null : button.dataset.role;
    section.querySelectorAll(".legend button").forEach((each) => each.setAttribute("aria-pressed", each.dataset.role === kept));
    light(kept);
  });
});
