// Everything that moves on the page: figures, their downloads, sorted tables, heat maps over training, the spectrum explorer.
"use strict";
const content = JSON.parse(document.getElementById("content").textContent);
const element = id => document.getElementById(id);
const darkness = matchMedia("(prefers-color-scheme: dark)");
const views = new Map();  // id of a figure -> {spec, view}

function look(width) {
  const print = matchMedia("print").matches;
  const text = darkness.matches && !print ? "#d8d8d8" : "#333", faint = darkness.matches && !print ? "#444" : "#ddd";
  const axis = {labelColor: text, titleColor: text, gridColor: faint, domainColor: faint, tickColor: faint};
  const columns = Math.max(1, Math.floor((width || innerWidth) / 150));  // of entries in a legend
  return {
    background: "transparent", font: "system-ui, sans-serif", view: {stroke: null}, axis,
    legend: {labelColor: text, titleColor: text, orient: "top", labelLimit: 320, titleLimit: 400, columns}, title: {color: text},
  };
}

// Draws a figure, in place of what stood there.
async function draw(id, spec) {
  views.get(id)?.view.finalize();
  const target = element(id).querySelector(".plot");
  const options = {actions: false, renderer: "svg", tooltip: {theme: darkness.matches ? "dark" : "light"}};
  const {view} = await vegaEmbed(target, {...spec, config: look(target.clientWidth)}, options);
  views.set(id, {spec, view});
  return view;
}

const redrawn = () => Promise.all([...views].map(([id, {spec}]) => draw(id, spec)));

function save(name, text, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function csv(rows) {
  const columns = [...new Set(rows.flatMap(Object.keys))];
  const cell = value => value == null ? "" : /[",\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value;
  return [columns, ...rows.map(row => columns.map(column => row[column]))].map(row => row.map(cell).join(",")).join("\n");
}

for (const figure of document.querySelectorAll("figure")) {
  const tools = document.createElement("p");
  tools.className = "tools";
  const button = (text, action) => {
    const tool = document.createElement("button");
    Object.assign(tool, {type: "button", textContent: text, onclick: action});
    tools.append(tool);
  };
  button("Data (CSV)", () => save(`${figure.id}.csv`, csv(views.get(figure.id).spec.data.values), "text/csv"));
  button("Picture (SVG)", async () => save(`${figure.id}.svg`, await views.get(figure.id).view.toSVG(), "image/svg+xml"));
  figure.append(tools);
}

// Tables of class `sortable`: a click on a heading sorts by it, another click in the other order.
for (const table of document.querySelectorAll("table.sortable")) {
  const [head, ...rows] = table.rows;
  const key = (row, place) => {
    const cell = row.cells[place], value = cell.dataset.value ?? cell.textContent.trim();
    return value !== "" && !Number.isNaN(+value) ? +value : value;
  };
  const compare = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
  [...head.cells].forEach((cell, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...cell.childNodes);
    cell.append(button);
    button.addEventListener("click", () => {
      const upwards = cell.getAttribute("aria-sort") !== "ascending";
      for (const other of head.cells) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", upwards ? "ascending" : "descending");
      rows.sort((a, b) => (upwards ? 1 : -1) * compare(key(a, place), key(b, place)));
      head.parentElement.append(head, ...rows);
    });
  });
}

const fill = (select, entries) => select.replaceChildren(...entries.map(([value, text]) => new Option(text, value)));
const same = names => names.map(name => [name, name]);

// Draws heat maps over training: a quantity in two arms, and how they differ.
function courses() {
  const chosen = content.courses[element("course-network").value];
  const quantity = element("course-quantity").value, arms = [element("course-first").value, element("course-second").value];
  const between = quantity in chosen.between, pair = [...arms].sort().join("|");
  const both = arms.map(arm => chosen.arms[arm]);
  const grids = between ? [chosen.between[quantity][pair] ?? []] : both.map(arm => arm.values[quantity]);
  // A layer that never has the quantity has no row: what was never pre-trained is not compared with what was.
  const shown = chosen.layers.filter((_, row) => grids.some(grid => grid[row]?.some(value => value !== null)));
  // Blank names set stages apart: one at a time, between layers.
  const kept = chosen.rows.filter(row => !row.trim() || shown.includes(row));
  const laidOut = kept.filter((row, place) => row.trim() || (kept[place - 1]?.trim() && kept.slice(place).some(later => later.trim())));
  const images = quantity.startsWith("cka ") ? new Map(chosen.layers.map((layer, row) => [layer, chosen.images[row]])) : null;
  const rows = (values, steps) => chosen.layers.flatMap((layer, row) => !shown.includes(layer) ? [] : steps.map(
    (step, column) => ({layer, step, value: values[row][column], ...images && {images: images.get(layer)}})));
  const title = content.quantities[quantity].title;
  const spec = (values, scale, name) => {
    const filled = structuredClone(content.specs.course);
    filled.data = {values};
    filled.height *= Math.max(laidOut.length, 1);
    filled.encoding.y.scale = {domain: laidOut};
    if (images) filled.encoding.tooltip.push({field: "images", type: "quantitative", title: "images, at least"});
    filled.encoding.color.scale = scale;
    filled.encoding.color.title = name;
    return filled;
  };
  for (const [place, id] of ["course-a", "course-b"].entries()) element(id).hidden = between;
  element("course-text").textContent = content.quantities[quantity].text;
  if (between) {
    const values = chosen.between[quantity][pair];
    element("course-c").hidden = values === undefined;
    return values && draw("course-c", spec(rows(values, chosen.snapshots), {scheme: "viridis"}, `${title}, ${arms.join(" and ")}`));
  }
  const numbers = both.flatMap(arm => arm.values[quantity].flat().filter(value => value !== null));
  if (!numbers.length) element("course-text").textContent += " Neither of the two arms has it in every run of any layer.";
  const domain = numbers.length ? [Math.min(...numbers), Math.max(...numbers)] : [0, 1];
  const drawn = both.map((arm, place) => draw(
    ["course-a", "course-b"][place],
    spec(rows(arm.values[quantity], arm.steps), {scheme: "viridis", domain}, `${title}: ${arms[place]}`)));
  const comparable = arms[0] !== arms[1] && String(both[0].steps) === String(both[1].steps);
  element("course-c").hidden = !comparable;
  if (comparable) {
    const apart = both[0].values[quantity].map((row, layer) => row.map((value, column) => {
      const other = both[1].values[quantity][layer][column];
      return value === null || other === null ? null : value - other;
    }));
    const most = Math.max(...apart.flat().map(Math.abs)) || 1;
    drawn.push(draw("course-c", spec(
      rows(apart, both[0].steps), {scheme: "blueorange", domain: [-most, most]}, `${arms[0]} minus ${arms[1]}`)));
  }
  return Promise.all(drawn);
}

function courseNetwork() {
  const arms = Object.keys(content.courses[element("course-network").value].arms);
  fill(element("course-first"), same(arms));
  fill(element("course-second"), same(arms));
  element("course-second").selectedIndex = arms.length - 1;
  return courses();
}

// The spectrum explorer. Spectra are numbers of 16 bits on a logarithmic scale, see views.py.
const decoded = new Map();

function levels(packed) {
  if (!decoded.has(packed)) {
    const bytes = Uint8Array.from(atob(packed), character => character.charCodeAt(0));
    decoded.set(packed, new Uint16Array(bytes.buffer));
  }
  return decoded.get(packed);
}

function spectraShown() {
  const chosen = content.spectra[element("spectrum-network").value], {decades, largest} = content.levels;
  const layer = chosen.layers[element("spectrum-layer").value], share = element("spectrum-share").checked;
  const snapshot = +element("spectrum-snapshot").value, logarithmic = element("spectrum-log").checked;
  const rows = [], steps = new Map();
  layer.runs.forEach(({run, width, packed}) => {
    const {arm, seed, steps: all} = chosen.runs[run], index = chosen.index[width];
    const place = Math.min(snapshot, all.length - 1), spectra = levels(packed);
    steps.set(arm, (steps.get(arm) ?? new Set()).add(all[place]));
    index.forEach((number, point) => {
      const level = spectra[place * index.length + point];
      if (logarithmic && level === 0) return;
      const value = level === 0 ? 0 : 10 ** (decades * (level / largest - 1));
      rows.push({arm, seed, step: all[place], index: number, x: share ? number / width : number, value});
    });
  });
  const text = [...steps].map(([arm, all]) => `${arm} at step ${[...all].join(" and ")}`).join(", ");
  element("spectrum-steps").textContent = text;
  element("spectrum-snapshot").setAttribute("aria-valuetext", text);
  return rows;
}

async function explore() {
  const spec = structuredClone(content.specs[element("spectrum-log").checked ? "spectrum_log" : "spectrum_linear"]);
  spec.data = {name: "spectra", values: spectraShown()};
  spec.encoding.x.title = element("spectrum-share").checked ? "index / width" : "index";
  await draw("spectrum", spec);
}

// Shows other spectra on the same axes, without building the figure again.
function move() {
  const shown = views.get("spectrum"), rows = spectraShown();
  shown.spec.data.values = rows;
  return shown.view.data("spectra", rows).runAsync();
}

function spectrumNetwork() {
  const chosen = content.spectra[element("spectrum-network").value];
  fill(element("spectrum-layer"), chosen.layers.map((layer, place) => [place, layer.name]));
  element("spectrum-layer").selectedIndex = chosen.layers.length - 1;
  element("spectrum-snapshot").max = Math.max(...chosen.runs.map(run => run.steps.length)) - 1;
  element("spectrum-snapshot").value = element("spectrum-snapshot").max;
  return explore();
}

async function start() {
  for (const [id, spec] of Object.entries(content.figures)) await draw(id, spec);
  if (Object.keys(content.spectra).length) {
    fill(element("spectrum-network"), same(Object.keys(content.spectra)));
    element("spectrum-network").addEventListener("change", spectrumNetwork);
    for (const name of ["layer", "snapshot"]) element(`spectrum-${name}`).addEventListener("input", move);
    for (const name of ["share", "log"]) element(`spectrum-${name}`).addEventListener("change", explore);
    await spectrumNetwork();
  }
  if (Object.keys(content.courses).length) {
    fill(element("course-network"), same(Object.keys(content.courses)));
    fill(element("course-quantity"), Object.entries(content.quantities).map(([name, {title}]) => [name, title]));
    element("course-quantity").value = content.quantity;
    element("course-network").addEventListener("change", courseNetwork);
    for (const name of ["quantity", "first", "second"]) element(`course-${name}`).addEventListener("change", courses);
    await courseNetwork();
  }
  document.body.dataset.ready = "yes";
}

darkness.addEventListener("change", redrawn);
matchMedia("print").addEventListener("change", redrawn);
start();
