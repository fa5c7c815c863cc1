// A link to a folded element opens it.
function unfold() {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let each = target; each; each = each.parentElement) if (each.tagName === "DETAILS") each.open = true;
  if (target) target.scrollIntoView();
}
addEventListener("hashchange", unfold);

// On paper nothing can be opened or scrolled: what is folded is printed open, unless there are many layers, and the
// picture of the network is made as wide as the paper.
const PAPER = 680; // CSS pixels between the margins
const folded = [], wide = document.querySelector("#network .columns");
addEventListener("beforeprint", () => {
  if (wide) wide.style.zoom = Math.min(1, PAPER / wide.scrollWidth);
  if (document.querySelectorAll("details.layer").length > 24) return;
  document.querySelectorAll("details:not([open])").forEach((each) => { each.open = true; folded.push(each); });
});
addEventListener("afterprint", () => {
  if (wide) wide.style.zoom = "";
  folded.splice(0).forEach((each) => { each.open = false; });
});

whenShown(traceClass);
unfold();
