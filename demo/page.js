() => {
  document.documentElement.lang = "en";
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") document.querySelector("#stop:not([disabled])")?.click();
  });
  window.mmdora = {
    save(name, type, text) {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], { type }));
      link.download = name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    },
    async copy(query) {
      const address = new URL(query, location.href).href;
      history.replaceState(null, "", address);
      try {
        await navigator.clipboard.writeText(address);
        const button = document.querySelector("#link");
        const label = button.textContent;
        button.textContent = "Copied";
        setTimeout(() => (button.textContent = label), 1500);
      } catch {
        window.prompt("The link to this comparison:", address); // no clipboard without HTTPS
      }
    },
  };
}
