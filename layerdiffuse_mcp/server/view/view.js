// The page's controls, and the calls that a person may make from it.

// Layers

function moveTo(layer, x, y, moving = false) {
  Object.assign(layer, { x, y });
  state.group.touched = true;
  $("x").value = x;
  $("y").value = y;
  refresh(moving);
  offerSaving();
}

function select(layer) {
  state.selected = layer;
  for (const [index, row] of [...$("layers").children].reverse().entries()) {
    const chosen = state.group.layers[index] === layer;
    row.classList.toggle("selected", chosen);
    row.querySelector("button")?.setAttribute("aria-pressed", chosen);
  }
  $("place").hidden = !layer;
  if (layer) [$("x").value, $("y").value] = [layer.x, layer.y];
  draw();
}

function offerSaving() {
  $("save").hidden = !(host.tools && state.group.touched && state.group.layers.length > 1);
}

function element(kind, properties, ...children) {
  const made = Object.assign(document.createElement(kind), properties);
  made.append(...children);
  return made;
}

/** A small picture on a checkerboard. */
function thumbnail(source, pixelsWide = 144) {
  const small = element("canvas", { width: pixelsWide, height: pixelsWide });
  small.setAttribute("aria-hidden", "true");
  if (!source) return small;
  const scale = Math.min(pixelsWide / source.width, pixelsWide / source.height);
  const [wide, high] = [source.width * scale, source.height * scale];
  small.getContext("2d").drawImage(source, (pixelsWide - wide) / 2, (pixelsWide - high) / 2, wide, high);
  return small;
}

function listLayers() {
  const { layers } = state.group;
  $("panel").hidden = layers.length < 2;
  $("layers").replaceChildren(...layers.map(rowOf).reverse());
  offerSaving();
}

function rowOf(layer) {
  const box = element("input", { type: "checkbox", checked: layer.visible });
  box.addEventListener("change", () => {
    layer.visible = box.checked;
    state.group.touched = true;
    refresh();
    offerSaving();
  });
  const label = element("label", {}, box, thumbnail(layer.bitmap, 72), element("span", { textContent: layer.name }));
  const row = element("li", {}, label);
  if (!layer.fixed) {
    const move = element("button", { textContent: "Move" });
    move.setAttribute("aria-label", `Move ${layer.name}`);
    move.setAttribute("aria-pressed", "false");
    move.addEventListener("click", () => select(state.selected === layer ? null : layer));
    row.append(move);
  }
  return row;
}

/** The topmost layer that is visible at a point of the stage; the lowest is held fast unless it is selected. */
function layerAt(x, y) {
  const { group, scale, selected } = state;
  const [at, down] = [(x - state.x) / scale, (y - state.y) / scale];
  const hit = (layer) => at >= layer.x && down >= layer.y && at < layer.x + layer.width && down < layer.y + layer.height;
  if (selected && hit(selected)) return selected;
  return group.layers.slice(1).reverse().find((layer) => layer.visible && !layer.fixed && hit(layer) && isInk(layer, at, down));
}

function isInk(layer, at, down) {
  if (!layer.bitmap) return true;
  const dot = new OffscreenCanvas(1, 1).getContext("2d");
  dot.translate(-Math.floor(at), -Math.floor(down));
  paint(dot, layer);
  return dot.getImageData(0, 0, 1, 1).data[3] > 8;
}

// Showing

async function show(group) {
  const last = state.group;
  say("Reading the pictures…");
  await load(group);
  for (const layer of group.layers) {
    if (!layer.width) Object.assign(layer, { width: layer.bitmap.width, height: layer.bitmap.height });
  }
  if (!group.width) [group.width, group.height] = [group.layers[0].width, group.layers[0].height];
  if (last && last !== group && state.flat) setBefore(state.flat);
  Object.assign(state, { group, selected: null });
  $("place").hidden = true;
  $("work").hidden = false;
  refresh();
  listLayers();
  fit();
  for (const id of ["again", "larger"]) $(id).hidden = !(host.tools && group.seed !== undefined);
  say(group.warnings.join("\n"));
  for (const [index, item] of [...$("strip").children].entries()) {
    item.firstChild.setAttribute("aria-pressed", state.groups[index] === group);
  }
}

function setBefore(picture) {
  state.before = picture;
  $("compare").hidden = !picture;
}

async function showAll(groups) {
  if (!groups.length) throw new Error("It made no pictures.");
  state.groups = groups;
  await Promise.all(groups.map((group) => load(group).catch(() => {})));
  $("strip").hidden = groups.length < 2;
  $("strip").replaceChildren(...groups.map((group, index) => {
    const button = element("button", { title: group.name }, thumbnail(group.width ? flattened(group) : null));
    button.setAttribute("aria-label", `Picture ${index + 1}: ${group.name}`);
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => attempt(() => show(group)));
    return element("li", {}, button);
  }));
  await show(groups[0]);
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

/** Does something that may fail, and says why if it does. */
async function attempt(work) {
  try {
    await work();
  } catch (error) {
    $("cancel").hidden = true;
    if (!state.group) $("title").textContent = "Nothing to show";
    say(error.message, true);
  }
}

// Calls

/** The facts of a call once its job has ended, however long that takes. */
async function ended(facts) {
  while (["downloading", "queued", "running"].includes(facts.status)) {
    state.running = facts.job_id;
    $("cancel").hidden = !host.tools;
    if (!state.group) $("title").textContent = promptOf(state.asked) ?? "Drawing";
    say(`${Math.round((facts.progress ?? 0) * 100)}%, ${facts.message ?? "waiting"}`);
    if (!host.tools) return facts;
    const asked = await callTool("get_job", { job_ids: [facts.job_id], wait_seconds: 2, preview: false });
    [facts] = asked.structuredContent.jobs;
  }
  $("cancel").hidden = true;
  if (facts.status && facts.status !== "done") throw new Error(facts.error ?? "It was cancelled; it left no pictures.");
  return facts;
}

async function redraw(changes) {
  const { group } = state, output = { preview: false, wait_seconds: 1 };
  say("Drawing…");
  busy(true);
  try {
    const result = await callTool("redraw_image", { image: group.layers[0].uri, changes, output });
    const facts = await ended(result.structuredContent);
    tellModel(result);
    await showAll(groupsOf(facts, { prompt: group.name }));
  } finally {
    busy(false);
  }
}

async function save() {
  const { group } = state;
  say("Composing…");
  busy(true);
  try {
    const result = await callTool("compose_layers", { ...composing(group), output: { preview: false } });
    tellModel(result);
    const given = group.layers.filter((layer) => !layer.fixed && (group.path || layer.visible));
    const ground = group.ground ?? group.layers.find((layer) => layer.fixed)?.uri;
    await showAll([compositionOf(result.structuredContent, given, ground)]);
    say(`Saved: ${result.structuredContent.path}`);
  } finally {
    busy(false);
  }
}

function busy(is) {
  for (const id of ["again", "larger", "save"]) $(id).disabled = is;
}

async function browse(page) {
  $("gallery").hidden = false;
  $("open-gallery").setAttribute("aria-expanded", "true");
  const words = $("words").value.trim();
  const { structuredContent } = await callTool("find_images", words ? { words, page } : { page });
  await showFound(structuredContent);
}

async function showFound({ images, page, pages, total }) {
  state.page = page;
  $("gallery").hidden = false;
  if (!state.group) $("title").textContent = "Pictures made before";
  $("page").textContent = total ? `Page ${page} of ${pages}, ${total} pictures` : "No pictures";
  [$("newer").disabled, $("older").disabled] = [page <= 1, page >= pages];
  const cards = images.filter((image) => image.image_id).map((image) => cardOf({ ...image, uri: IMAGES + image.image_id }));
  $("found").replaceChildren(...cards.map(({ item }) => item));
  for (const { item, fill } of cards) if (item.isConnected) await fill();
}

function cardOf(image) {
  const name = image.prompt ?? image.role ?? "picture";
  const about = [image.role, image.width && `${image.width} × ${image.height}`].filter(Boolean).join(" · ");
  const group = groupOf(name, [layerOf(image)], { seed: image.model ? image.seed : undefined, width: image.width ?? 0 });
  const open = element("button", { className: "open", title: name }, thumbnail());
  open.setAttribute("aria-label", `Open ${name}, ${image.made}`);
  open.addEventListener("click", () => attempt(async () => {
    await showAll([group]);
    stage.focus();
  }));
  const behind = element("button", { textContent: "Behind" });
  behind.addEventListener("click", () => attempt(async () => setBehind(await pixels(image.uri))));
  const before = element("button", { textContent: "Before" });
  before.addEventListener("click", () => attempt(async () => {
    setBefore(await pixels(image.uri));
    press("compare", true);
  }));
  const item = element("li", {}, open, element("p", { textContent: name }),
    element("p", { textContent: about }), element("div", { className: "group" }, behind, before));
  const fill = async () => {
    const small = await shown(`${image.uri}/view?width=264&format=webp`).catch(() => null);
    if (small) open.replaceChildren(thumbnail(small, 264));
  };
  return { item, fill };
}

function setBehind(bitmap) {
  state.behind = bitmap;
  const radio = document.querySelector("[value=picture]");
  radio.hidden = false;
  radio.checked = true;
  draw();
}

/** The picture that a call started from, to compare with: whole if it is ours, else as a small preview. */
async function findBefore({ image, blended, foreground, background }) {
  const given = [image, blended, background, foreground].find((name) => typeof name === "string");
  if (!given || state.before) return;
  if (addressOf(given)) return setBefore(await pixels(addressOf(given)));
  if (!host.tools) return;
  const looked = await callTool("inspect_image", { image: given });
  const small = looked.content.find((block) => block.type === "image");
  if (small) setBefore(await bitmapOf({ blob: small.data, mimeType: small.mimeType }));
}

async function showResult(result) {
  if (result.isError) throw new Error(textOf(result));
  const facts = result.structuredContent ?? {};
  if ("pages" in facts) return showFound(facts);
  const jobs = await Promise.all((facts.jobs ?? [facts]).map(async (job) => named(await ended(job))));
  if (host.tools) await nameLayers(state.asked.layers ?? []);
  await showAll(jobs.flatMap((job) => groupsOf(job, state.asked)));
  await findBefore(state.asked).catch(() => {});
}

/** A job's facts with its recipe, where the call does not say what was drawn. */
async function named(job) {
  if (!job.job_id || promptOf(state.asked)) return job;
  const read = await request("resources/read", { uri: JOBS + job.job_id }).catch(() => null);
  return read ? JSON.parse(read.contents[0].text) : job;
}

/** Finds the addresses of layers that were named by path, among the latest pictures. */
async function nameLayers(layers) {
  for (let page = 1; page < 4 && layers.some((layer) => layer.image && !addressOf(layer.image)); page++) {
    const { structuredContent } = await callTool("find_images", { page });
    for (const { path, image_id } of structuredContent.images) if (image_id) uris.set(path, IMAGES + image_id);
    if (page >= structuredContent.pages) return;
  }
}

// Hands on it

function listen(id, event, work) {
  $(id).addEventListener(event, (given) => attempt(() => work(given)));
}

for (const id of ["alpha", "grid", "compare"]) listen(id, "click", () => press(id));
listen("split", "input", draw);
listen("in", "click", () => zoomTo(state.scale * ZOOM));
listen("out", "click", () => zoomTo(state.scale / ZOOM));
listen("fit", "click", fit);
listen("backdrops", "change", draw);
listen("colour", "input", () => {
  document.querySelector("[value=colour]").checked = true;
  draw();
});
listen("choose", "click", () => $("file").click());
listen("file", "change", async () => setBehind(await createImageBitmap($("file").files[0])));
listen("again", "click", () => redraw({ seed: Math.floor(Math.random() * 2 ** 32) }));
listen("larger", "click", () => redraw({ size: `${state.group.width * 2}x${state.group.height * 2}` }));
listen("save", "click", save);
listen("cancel", "click", () => callTool("cancel_job", { job_id: state.running }));
for (const side of ["x", "y"]) {
  listen(side, "change", () => moveTo(state.selected, $("x").valueAsNumber || 0, $("y").valueAsNumber || 0));
}
listen("open-gallery", "click", async () => {
  if ($("gallery").hidden) return browse(1);
  $("gallery").hidden = true;
  $("open-gallery").setAttribute("aria-expanded", "false");
});
listen("search", "click", () => browse(1));
listen("words", "keydown", ({ key }) => key === "Enter" && browse(1));
listen("newer", "click", () => browse(state.page - 1));
listen("older", "click", () => browse(state.page + 1));
listen("fullscreen", "click", async () => {
  const { mode } = await request("ui/request-display-mode", { mode: state.full ? "inline" : "fullscreen" });
  takeContext({ displayMode: mode });
});
window.addEventListener("resize", () => state.group && state.fitted && fit());

let held = null;
listen("stage", "pointerdown", (event) => {
  if (!state.group) return;
  const { left, top } = stage.getBoundingClientRect();
  const layer = layerAt(event.clientX - left, event.clientY - top);
  if (layer !== state.selected) select(layer ?? null);
  held = { layer, fromX: event.clientX, fromY: event.clientY, x: (layer ?? state).x, y: (layer ?? state).y };
  stage.setPointerCapture(event.pointerId);
  stage.classList.add("holding");
});
listen("stage", "pointermove", ({ clientX, clientY }) => {
  if (!held) return;
  const [dx, dy] = [clientX - held.fromX, clientY - held.fromY];
  if (held.layer) {
    moveTo(held.layer, held.x + Math.round(dx / state.scale), held.y + Math.round(dy / state.scale), true);
  } else {
    Object.assign(state, { x: held.x + dx, y: held.y + dy, fitted: false });
    draw();
  }
});
for (const end of ["pointerup", "pointercancel"]) {
  listen("stage", end, () => {
    stage.classList.remove("holding");
    if (held?.layer) refresh();
    held = null;
  });
}
stage.addEventListener("wheel", (event) => {
  if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
  event.preventDefault();
  const { left, top } = stage.getBoundingClientRect();
  zoomTo(state.scale * ZOOM ** (-event.deltaY / 50), event.clientX - left, event.clientY - top);
}, { passive: false });

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const KEYS = {
  "+": () => zoomTo(state.scale * ZOOM), "=": () => zoomTo(state.scale * ZOOM), "-": () => zoomTo(state.scale / ZOOM),
  0: fit, 1: () => zoomTo(1), Escape: () => select(null),
};
listen("stage", "keydown", (event) => {
  if (!state.group || event.ctrlKey || event.metaKey || event.altKey) return;
  const arrow = ARROWS[event.key], { selected } = state;
  if (!arrow && !KEYS[event.key]) return;
  event.preventDefault();
  if (!arrow) return KEYS[event.key]();
  const step = selected ? (event.shiftKey ? 10 : 1) : -32;
  if (selected) return moveTo(selected, selected.x + arrow[0] * step, selected.y + arrow[1] * step);
  Object.assign(state, { x: state.x + arrow[0] * step, y: state.y + arrow[1] * step, fitted: false });
  draw();
});

// The host

function takeContext({ theme, styles, availableDisplayModes, displayMode }) {
  if (theme) document.documentElement.style.colorScheme = theme;
  for (const [name, value] of Object.entries(styles?.variables ?? {})) {
    document.documentElement.style.setProperty(name, value ?? "");
  }
  if (availableDisplayModes) $("fullscreen").hidden = !availableDisplayModes.includes("fullscreen");
  if (displayMode) state.full = displayMode === "fullscreen";
  $("fullscreen").setAttribute("aria-pressed", state.full);
  if (state.group && state.fitted) fit();
  else draw();
}

on("ui/notifications/host-context-changed", takeContext);
on("ui/notifications/tool-input", ({ arguments: given }) => { state.asked = given ?? {}; });
on("ui/notifications/tool-result", (result) => attempt(() => showResult(result)));
on("ui/notifications/tool-cancelled", () => attempt(() => { throw new Error("The call was cancelled."); }));
on("ui/resource-teardown", () => ({}));
on("ping", () => ({}));

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
new ResizeObserver(() => (state.group && state.fitted ? fit() : draw())).observe(stage);
new ResizeObserver(() => {
  const { scrollWidth, offsetHeight } = document.body;
  notify("ui/notifications/size-changed", { width: scrollWidth, height: offsetHeight });
}).observe(document.body);
attempt(async () => {
  await connect(takeContext);
  $("open-gallery").hidden = !host.tools;
});
