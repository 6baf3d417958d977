"use strict";
(() => {
  const tip = document.getElementById("tip");
  const show = (element, x, y) => {
    tip.textContent = element.dataset.tip;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(8, Math.min(x + 14, innerWidth - box.width - 8)) + "px";
    tip.style.top = (y + 18 + box.height > innerHeight ? y - box.height - 12 : y + 18) + "px";
  };
  const hide = () => { tip.hidden = true; };
  for (const element of document.querySelectorAll("[data-tip]")) {
    element.addEventListener("pointermove", (event) => show(element, event.clientX, event.clientY));
    element.addEventListener("pointerleave", hide);
    element.addEventListener("focus", () => {
      const box = element.getBoundingClientRect();
      show(element, box.left + box.width / 2, box.top + box.height / 2);
    });
    element.addEventListener("blur", hide);
  }
  addEventListener("scroll", hide, { passive: true });

  for (const table of document.querySelectorAll("table[data-sortable]")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") !== "descending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const body = table.tBodies[0];
        const key = (row) => {
          const cell = row.cells[column];
          return "v" in cell.dataset ? (cell.dataset.v === "" ? null : Number(cell.dataset.v)) : cell.textContent.trim();
        };
        const order = (a, b) => {
          const [x, y] = [key(a), key(b)];
          if (x === null || y === null) return (x === null) - (y === null);
          const sign = typeof x === "number" ? x - y : x.localeCompare(y);
          return down ? -sign : sign;
        };
        body.append(...[...body.rows].sort(order));
      });
    });
  }

  for (const select of document.querySelectorAll("select[data-switch]")) {
    const panels = [...document.querySelectorAll(`[data-panel="${select.dataset.switch}"]`)];
    const apply = () => panels.forEach((panel, index) => { panel.hidden = index !== Number(select.value); });
    select.addEventListener("change", apply);
    apply();
  }

  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(button.nextElementSibling.textContent.trim());
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(button.nextElementSibling);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }
})();
