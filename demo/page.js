() => {
  document.documentElement.lang = "en";
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") document.querySelector("#stop:not([disabled])")?.click();
  });
  // A long answer scrolls with its text. Each state replaces the text's element, so what the reader chose is kept here.
  const chosen = new Map();
  document.addEventListener(
    "scroll",
    ({ target }) => {
      if (!target.matches?.(".answer .text")) return;
      const place = [...document.querySelectorAll(".answer .text")].indexOf(target);
      const end = target.scrollHeight - target.scrollTop - target.clientHeight < 8;
      end ? chosen.delete(place) : chosen.set(place, target.scrollTop);
    },
    true,
  );
  let growing = false;
  new MutationObserver(() => {
    const turn = document.querySelector(".turn"); // the newest
    const busy = Boolean(turn?.querySelector('[aria-busy="true"]'));
    if (busy || growing)
      turn?.querySelectorAll(".text").forEach((text, place) => {
        text.scrollTop = chosen.get(place) ?? text.scrollHeight;
      });
    if (growing && !busy) chosen.clear();
    growing = busy;
  }).observe(document.body, { subtree: true, childList: true });
  window.mmdora = {
    save(name, type, text) {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], { type }));
      link.download = name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    },
    // The name of this tab's conversation, which lasts for a reload.
    keep(name) {
      try {
        if (name) sessionStorage.setItem("mmdora", name);
      } catch {} // a browser that keeps nothing
    },
    // Bring the newest turn into view, once it is there: a phone shows only the picture above it.
    show() {
      const until = Date.now() + 10000;
      const look = () => {
        const turn = document.querySelector(".turn");
        const number = turn?.querySelector(".number").textContent;
        if (turn && (number !== window.mmdora.shown || turn.querySelector('[aria-busy="true"]'))) {
          window.mmdora.shown = number;
          const top = turn.getBoundingClientRect().top;
          const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
          if (top < 0 || top > innerHeight * 0.6)
            turn.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
        } else if (Date.now() < until) requestAnimationFrame(look);
      };
      look();
    },
    // Show only the lines of the table of questions that fit: "0>1" where model 0 is right and model 1 is wrong.
    filter(value) {
      const [right, wrong] = value.includes(">") ? value.split(">") : ["", ""];
      let shown = 0;
      for (const row of document.querySelectorAll(".many tr[data-right]")) {
        const holds = (own, wanted) => !wanted || own.split(" ").includes(wanted);
        const fits = holds(row.dataset.right, right) && holds(row.dataset.wrong, wrong);
        row.hidden = !fits || (value === "differ" && !row.dataset.differ);
        shown += !row.hidden;
      }
      document.querySelectorAll(".many .none").forEach((told) => (told.hidden = shown > 0));
    },
    async copy(query) {
      const address = new URL(query, location.href).href;
      history.replaceState(null, "", address);
      try {
        sessionStorage.setItem("mmdora-link", location.search); // this tab has it already
      } catch {} // a browser that keeps nothing
      try {
        await navigator.clipboard.writeText(address);
        const button = document.querySelector("#link");
        const label = button.textContent;
        button.textContent = query.startsWith("?c=") ? "Copied: lasts 7 days" : "Copied";
        setTimeout(() => (button.textContent = label), 2500);
      } catch {
        window.prompt("The link to this comparison:", address); // no clipboard without HTTPS
      }
    },
  };
}
