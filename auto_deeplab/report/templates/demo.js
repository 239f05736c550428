// Names what is pointed at, in the picture or in the table, and dims all else. `element` is the box
// of the answer, which stays when another answer comes into it.
let shown = { image: null, width: 0, height: 0, labels: null };

const read = () => {
  const image = element.querySelector(".labels");
  if (!image || !image.complete) return null;
  if (shown.image !== image) {
    const canvas = document.createElement("canvas");
    const [width, height] = [image.naturalWidth, image.naturalHeight];
    [canvas.width, canvas.height] = [width, height];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const pixels = context.getImageData(0, 0, width, height).data;
    shown = { image, width, height, labels: pixels.filter((_, index) => index % 4 === 0), marked: null };
  }
  return shown;
};

const mark = (index) => {
  const found = read();
  if (!found || found.marked === index) return;
  found.marked = index;
  for (const row of element.querySelectorAll("tr[data-class]")) {
    row.classList.toggle("on", Number(row.dataset.class) === index);
  }
  const canvas = element.querySelector(".view canvas");
  const context = canvas.getContext("2d");
  [canvas.width, canvas.height] = [found.width, found.height]; // which empties it
  if (index === null) return;
  const shade = context.createImageData(found.width, found.height);
  found.labels.forEach((label, pixel) => { if (label !== index) shade.data[4 * pixel + 3] = 130; });
  context.putImageData(shade, 0, 0);
};

const leave = () => {
  mark(null);
  const tip = element.querySelector(".tip");
  if (tip) tip.hidden = true;
};

element.addEventListener("pointermove", (event) => {
  const row = event.target.closest("tr[data-class]");
  const view = event.target.closest(".view");
  const tip = element.querySelector(".tip");
  if (row) {
    mark(Number(row.dataset.class));
    tip.hidden = true;
    return;
  }
  const found = view && read();
  if (!found) return leave();
  const box = view.getBoundingClientRect();
  const across = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1 - 1e-9);
  const down = Math.min(Math.max((event.clientY - box.top) / box.height, 0), 1 - 1e-9);
  const x = Math.floor(across * found.width);
  const label = found.labels[Math.floor(down * found.height) * found.width + x];
  const said = element.querySelector(`tr[data-class="${label}"]`);
  if (!said) return leave(); // a class of so few pixels that the smaller picture alone has it not
  mark(label);
  tip.textContent = `${said.querySelector("th").textContent}, ${said.querySelector(".share").textContent}`;
  tip.hidden = false;
  const left = across * box.width + 14;
  tip.style.left = `${Math.max(Math.min(left, box.width - tip.offsetWidth - 2), 0)}px`;
  tip.style.top = `${Math.max(down * box.height - tip.offsetHeight - 12, 2)}px`;
});
element.addEventListener("pointerleave", leave);
element.addEventListener("focusin", (event) => {
  const row = event.target.closest("tr[data-class]");
  if (row) mark(Number(row.dataset.class));
});
element.addEventListener("focusout", leave);
element.addEventListener("input", (event) => {
  if (event.target.type !== "range") return;
  element.querySelector(".overlay").style.opacity = event.target.value / 100;
});
