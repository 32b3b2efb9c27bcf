// The stage: everything that is drawn on the one canvas, and how it is looked at.

const $ = (id) => document.getElementById(id);
const state = {
  asked: {}, groups: [], group: null, flat: null, grey: null, before: null, behind: null, selected: null,
  scale: 1, x: 0, y: 0, fitted: true, page: 1, running: null, full: false,
};
const canvas = $("canvas"), stage = $("stage"), pen = canvas.getContext("2d", { willReadFrequently: true });
const COLOURS = { black: "#000000", white: "#ffffff", green: "#00b140" };
const CHECK = 8, ZOOM = 1.25, MOST = 64, GRID_FROM = 6;

// Drawing

function frame() {
  const { group, scale, x, y } = state;
  return { left: x, top: y, width: group.width * scale, height: group.height * scale };
}

function draw() {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(stage.clientWidth * ratio);
  canvas.height = Math.round(stage.clientHeight * ratio);
  if (!state.group) return;
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  const { left, top, width, height } = frame();
  const whole = isPressed("alpha") ? (state.grey ??= alphaAsGrey(state.flat)) : state.flat;
  pen.imageSmoothingEnabled = state.scale < 2;
  pen.save();
  pen.beginPath();
  pen.rect(left, top, width, height);
  pen.clip();
  paintBehind(left, top, width, height);
  pen.drawImage(whole, left, top, width, height);
  if (isPressed("compare") && state.before) paintBefore(left, top, width, height);
  if (isPressed("grid") && state.scale >= GRID_FROM) paintGrid(left, top, width, height);
  pen.restore();
  if (state.selected) outline(state.selected);
  $("zoom").value = `${Math.round(state.scale * 100)}%`;
}

function paintBehind(left, top, width, height) {
  const chosen = document.querySelector("[name=backdrop]:checked").value;
  if (chosen === "picture" && state.behind) return cover(state.behind, left, top, width, height);
  pen.fillStyle = chosen === "colour" ? $("colour").value : COLOURS[chosen] ?? checks(left, top);
  pen.fillRect(left, top, width, height);
}

/** A checkerboard that begins at a corner of the picture. */
function checks(left, top) {
  const tile = new OffscreenCanvas(2 * CHECK, 2 * CHECK), small = tile.getContext("2d");
  for (const [name, first] of [["--light", 0], ["--dark", CHECK]]) {
    small.fillStyle = toned(name);
    small.fillRect(first, 0, CHECK, CHECK);
    small.fillRect(CHECK - first, CHECK, CHECK, CHECK);
  }
  const pattern = pen.createPattern(tile, "repeat");
  pattern.setTransform(new DOMMatrix().translate(left, top));
  return pattern;
}

/** The colour that a variable of the style sheet has in the present theme. */
function toned(name) {
  $("canvas").style.color = `var(${name})`;
  return getComputedStyle($("canvas")).color;
}

function cover(bitmap, left, top, width, height) {
  const scale = Math.max(width / bitmap.width, height / bitmap.height);
  const [wide, high] = [bitmap.width * scale, bitmap.height * scale];
  pen.drawImage(bitmap, left + (width - wide) / 2, top + (height - high) / 2, wide, high);
}

function paintBefore(left, top, width, height) {
  const split = (width * $("split").value) / 100;
  pen.save();
  pen.beginPath();
  pen.rect(left, top, split, height);
  pen.clip();
  paintBehind(left, top, width, height);
  const { before } = state, scale = Math.min(width / before.width, height / before.height);
  const [wide, high] = [before.width * scale, before.height * scale];
  pen.drawImage(before, left + (width - wide) / 2, top + (height - high) / 2, wide, high);
  pen.restore();
  pen.fillStyle = toned("--accent");
  pen.fillRect(left + split - 1, top, 2, height);
}

function paintGrid(left, top, width, height) {
  pen.fillStyle = "rgb(128 128 128 / 45%)";
  for (let x = 0; x <= width + 0.5; x += state.scale) pen.fillRect(left + x, top, 1, height);
  for (let y = 0; y <= height + 0.5; y += state.scale) pen.fillRect(left, top + y, width, 1);
}

function outline(layer) {
  pen.strokeStyle = toned("--accent");
  pen.lineWidth = 2;
  pen.setLineDash([6, 4]);
  const { left, top } = frame();
  pen.strokeRect(left + layer.x * state.scale, top + layer.y * state.scale, layer.width * state.scale,
    layer.height * state.scale);
}

/** Composes anew after a layer has changed; the words too, unless it is still being moved. */
function refresh(moving = false) {
  state.flat = flattened(state.group);
  state.grey = null;
  draw();
  if (moving) return;
  const facts = alphaFacts(state.flat), { name, width, height, seed } = state.group;
  const seeded = seed === undefined ? "" : `, seed ${seed}`;
  $("title").textContent = name;
  $("facts").textContent = `${width} × ${height}${seeded} · ${facts}`;
  canvas.setAttribute("aria-label", `${name}: ${facts}`);
}

// Looking

function fit() {
  const { group } = state;
  const margin = 16, wide = stage.clientWidth - 2 * margin;
  const most = state.full ? Math.max(480, window.innerHeight - 280) : 480;
  stage.style.height = `${Math.max(260, Math.min(most, (wide * group.height) / group.width + 2 * margin))}px`;
  const scale = Math.min(wide / group.width, (stage.clientHeight - 2 * margin) / group.height);
  state.scale = scale > 2 ? Math.floor(scale) : scale;
  state.x = (stage.clientWidth - group.width * state.scale) / 2;
  state.y = (stage.clientHeight - group.height * state.scale) / 2;
  state.fitted = true;
  draw();
}

function zoomTo(scale, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
  if (!state.group) return;
  const wanted = Math.max(1 / 16, Math.min(MOST, scale)), factor = wanted / state.scale;
  state.x = x - (x - state.x) * factor;
  state.y = y - (y - state.y) * factor;
  state.scale = wanted;
  state.fitted = false;
  draw();
}

function isPressed(id) {
  return $(id).getAttribute("aria-pressed") === "true";
}

function press(id, value = !isPressed(id)) {
  $(id).setAttribute("aria-pressed", value);
  $("split").hidden = !isPressed("compare");
  draw();
}
