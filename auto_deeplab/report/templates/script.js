"use strict";
// Draws each network of the page, and draws it again for the report that its slider stands at.
for (const box of document.querySelectorAll(".architecture")) {
  const reports = JSON.parse(box.querySelector("script").textContent);
  const slider = box.querySelector("input");
  const all = (where, what) => [...where.querySelectorAll(what)];
  const [edges, nodes, cells] = [".edge", ".node", ".cell"].map((what) => all(box, what));
  const shares = reports.flatMap((report) => (report.alpha || []).flat());
  const largest = shares.reduce((most, share) => Math.max(most, share), 0.01);

  const show = (report) => {
    edges.forEach((edge, index) => {
      const share = report.beta ? report.beta[index] : 0;
      edge.style.strokeWidth = 0.8 + 13 * share;
      edge.querySelector("title").textContent = report.beta ? `beta ${(100 * share).toFixed(1)} %` : "";
    });
    nodes.forEach((node, index) => node.classList.toggle("on", report.nodes.includes(index)));
    const centre = (index) => `${nodes[index].getAttribute("cx")},${nodes[index].getAttribute("cy")}`;
    box.querySelector(".route").setAttribute("points", report.nodes.map(centre).join(" "));
    cells.forEach((cell, number) => {
      const [kept, branches] = [report.kept[number], report.branches[number]];
      all(cell, ".share").forEach((place, index) => {
        const share = report.alpha ? report.alpha[number][index] : 0;
        place.querySelector("rect").style.fillOpacity = share / largest;
        place.querySelector("text").textContent = report.alpha ? (100 * share).toFixed(1) : "";
        place.classList.toggle("deep", share > 0.6 * largest);
        place.classList.toggle("kept", kept.places.includes(index));
      });
      all(cell, ".arc").forEach((arc, row) => {
        const weight = report.edge_weights ? report.edge_weights[number][row] : null;
        arc.classList.toggle("kept", kept.rows.includes(row));
        arc.style.strokeWidth = weight === null ? "" : 0.8 + 6 * weight;
        arc.querySelector("title").textContent = weight === null ? "" : `edge weight ${(100 * weight).toFixed(1)} %`;
      });
      all(cell, ".branch").forEach((text, index) => { text.textContent = branches[index] || ""; });
    });
    for (const line of slider ? document.querySelectorAll(".now") : []) {
      const x = Number(line.dataset.left) + Number(line.dataset.scale) * report.clock;
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
      line.setAttribute("visibility", "visible");
    }
    if (slider) {
      box.querySelector("output").textContent = report.said;
      slider.setAttribute("aria-valuetext", report.said);
    }
  };

  show(reports[reports.length - 1]);
  if (slider) {
    slider.addEventListener("input", () => show(reports[slider.value]));
  }
}
