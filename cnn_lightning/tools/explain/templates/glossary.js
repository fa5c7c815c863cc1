// Words of the glossary: the first time that a section's text has one, it becomes a link that shows the definition.

function linkWords() {
  const words = [...document.querySelectorAll(".glossary dt")].map((term) => ({
    id: term.id,
    pattern: new RegExp(`\\b(?:${term.dataset.pattern})\\b`, "i"),
    definition: term.nextElementSibling.textContent,
  }));
  document.querySelectorAll("main > section:not(#glossary)").forEach((section) => {
    const left = new Set(words), texts = [...section.querySelectorAll(":scope > p:not([id]), :scope > .side > figure > figcaption:not([id])")];
    texts.forEach((paragraph) => linkIn(paragraph, left));
  });
}

function linkIn(paragraph, words) {
  for (const word of words) {
    const walker = document.createTreeWalker(paragraph, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      const found = !node.parentElement.closest("a, button, code, option") && word.pattern.exec(node.data);
      if (!found) continue;
      const rest = node.splitText(found.index);
      rest.splitText(found[0].length);
      const link = element("a", { className: "term", href: `#${word.id}`, textContent: found[0] });
      link.dataset.meaning = word.definition;
      rest.replaceWith(link);
      words.delete(word);
      break;
    }
  }
}

linkWords();
