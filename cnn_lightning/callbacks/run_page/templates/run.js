"use strict";
{
  const run = JSON.parse(document.getElementById("run").textContent);
  const byId = (id) => document.getElementById(id);

  // ---- copy buttons

  const copy = async (button) => {
    const code = button.parentElement.querySelector("code");
    getSelection().selectAllChildren(code); // also shows what is copied, and the keys copy it where the page may not
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "copied";
      byId("said").textContent = "copied";
    } catch {
      byId("said").textContent = "selected";
      button.textContent = "selected";
    }
    setTimeout(() => { button.textContent = "copy"; }, 2000);
  };
  for (const button of document.querySelectorAll(".copy")) button.addEventListener("click", () => copy(button));

  // ---- a mistake: its page if explain has written it, otherwise how to write it

  const dialog = byId("mistake");
  const show = (link) => {
    byId("words").textContent = link.dataset.words;
    byId("large").src = link.querySelector("img").src;
    byId("page").textContent = link.getAttribute("href");
    dialog.querySelector(".command code").textContent = link.dataset.command;
    dialog.querySelector(".copy").setAttribute("aria-label", `Copy: ${link.dataset.command}`);
    dialog.showModal();
  };
  for (const link of document.querySelectorAll("[data-page]")) {
    link.addEventListener("click", (event) => {
      if ((window.pages ?? []).includes(link.dataset.page)) return;
      event.preventDefault();
      show(link);
    });
  }

  // ---- filters over the epochs

  const frame = (number) => {
    const { epoch, uri, scale } = run.frames[number];
    byId("frame").src = uri;
    byId("frame").alt = `The weights of the first convolution after epoch ${epoch}`;
    byId("scale").textContent = scale;
    byId("which").textContent = epoch;
    byId("epoch").setAttribute("aria-valuetext", `epoch ${epoch}`);
  };
  byId("epoch")?.addEventListener("input", (event) => frame(Number(event.target.value)));

  // ---- the cells of a large confusion matrix

  const matrix = byId("matrix");
  if (matrix) {
    const { names, cells, totals } = run.confusion;
    const counts = new Map(cells.map(([row, column, count]) => [row * names.length + column, count]));
    matrix.addEventListener("pointermove", (event) => {
      const box = matrix.getBoundingClientRect();
      const place = (at, size) => Math.min(names.length - 1, Math.max(0, Math.floor(at / size * names.length)));
      const row = place(event.clientY - box.top, box.height), column = place(event.clientX - box.left, box.width);
      const count = counts.get(row * names.length + column) ?? 0;
      byId("cell").textContent = `${names[row]} taken for ${names[column]}: ${count} of ${totals[row]}`;
    });
  }

  // ---- read the page of a running training again

  const again = byId("reload");
  if (again) {
    again.checked = sessionStorage.getItem("reload") !== "no";
    again.addEventListener("change", () => sessionStorage.setItem("reload", again.checked ? "yes" : "no"));
    setInterval(() => {
      if (again.checked && !dialog.open && !document.hidden) location.reload();
    }, 5000);
  }
}
