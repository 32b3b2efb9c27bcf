// What is looked at: groups of layers on one canvas, made from what tools return.
//   group: { name, width, height, layers (the lowest first), path?, flat?, seed?, touched, warnings }
//   layer: { name, uri?, path?, bitmap?, x, y, width, height, visible, fixed, opacity, blend, rotate, flip, was }

const IMAGES = "layerdiffuse://images/", JOBS = "layerdiffuse://jobs/";
const RANKS = { background: 0, blended: 2, composed: 3 };
const BLENDS = { normal: "source-over", add: "lighter" };
const uris = new Map(); // of pictures whose path was seen

function layerOf(facts, more = {}) {
  if (facts.uri) uris.set(facts.path, facts.uri);
  const [x, y] = facts.box ?? [0, 0];
  const name = facts.subject ?? facts.role ?? more.name ?? "picture";
  return { name, role: facts.role, uri: facts.uri, path: facts.path, x, y, width: facts.width, height: facts.height,
    visible: true, opacity: 1, rotate: 0, flip: "none", ...more };
}

function groupOf(name, layers, more = {}) {
  const width = Math.max(...layers.map((layer) => layer.x + layer.width));
  const height = Math.max(...layers.map((layer) => layer.y + layer.height));
  return { name, layers, width, height, touched: false, warnings: [], ...more };
}

/** The groups that a result shows; `asked` are the arguments of its call. */
function groupsOf(facts, asked) {
  if (facts.jobs) return facts.jobs.flatMap((job) => groupsOf(job, asked));
  if (facts.layers && facts.uri) return [compositionOf(facts, asked.layers ?? [], asked.background)];
  if (facts.images) return [...setsOf(facts, asked), ...(facts.sheet ? [groupOf("Sheet", [layerOf(facts.sheet)])] : [])];
  return facts.uri ? [groupOf(promptOf(asked) ?? "Picture", [layerOf(facts)], { warnings: facts.warnings ?? [] })] : [];
}

function promptOf(asked) {
  return asked.changes?.prompt ?? asked.prompt;
}

/** The layers of a job, those that were drawn together in one group: a role that comes again begins the next. */
function setsOf(facts, asked) {
  const sets = [];
  for (const picture of facts.images) {
    const begins = !sets.length || picture.subject || sets.at(-1).some((other) => other.role === picture.role);
    if (begins) sets.push([]);
    sets.at(-1).push(picture);
  }
  return sets.map((pictures) => {
    const layers = pictures.map((picture) => layerOf(picture));
    layers.sort((one, other) => (RANKS[one.role] ?? 1) - (RANKS[other.role] ?? 1));
    for (const layer of layers.slice(1)) layer.visible = (RANKS[layer.role] ?? 1) < 2;
    const prompt = pictures[0].subject ?? promptOf(asked) ?? facts.recipe?.request?.prompt;
    const warnings = [...pictures.flatMap((picture) => picture.reason ?? []), ...(facts.warnings ?? [])];
    const [{ seed }] = pictures;
    return groupOf(prompt ?? layers[0].name, layers, { seed: facts.model ? seed : undefined, warnings, job: facts.job_id });
  });
}

/** A composition: its own picture, and its layers as far as their pictures are at hand. */
function compositionOf(facts, given, background) {
  const below = facts.layers.length - given.length; // a background picture, which stands first
  const layers = facts.layers.map((place, index) => {
    const said = given[index - below] ?? {};
    const uri = said.uri ?? addressOf(index < below ? background : said.image);
    const { opacity = 1, rotate = 0, flip = "none" } = said;
    const { name, x, y, visible } = place;
    return layerOf({ ...place, uri, path: said.image }, {
      name, x, y, visible, fixed: index < below && given.length > 0, opacity, rotate, flip,
      blend: said.blend, was: { x, y, visible },
    });
  });
  const { width, height, path, uri } = facts;
  uris.set(path, uri);
  const ground = background && !addressOf(background) ? background : undefined;
  return { name: "Composition", layers, width, height, path, uri, ground, touched: false, warnings: facts.notes ?? [] };
}

function addressOf(given) {
  if (!given) return undefined;
  if (given.startsWith(IMAGES)) return given;
  return /^job-[0-9a-z]+-[0-9]+$/.test(given) ? IMAGES + given : uris.get(given);
}

async function load(group) {
  if (group.uri) group.flat ??= await pixels(group.uri).catch(() => undefined);
  const reading = group.layers.map(async (layer) => {
    if (layer.uri) layer.bitmap ??= await pixels(layer.uri);
  });
  const read = await Promise.allSettled(reading);
  const failed = read.find((outcome) => outcome.status === "rejected");
  if (group.flat || group.layers.some((layer) => layer.bitmap)) return;
  throw failed?.reason ?? new Error(`No browser shows this kind of file: ${group.path}`);
}

/** Everything that is visible, as one canvas of the group's own pixels. */
function flattened(group) {
  const canvas = new OffscreenCanvas(group.width, group.height);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const whole = group.layers.every((layer) => layer.bitmap);
  if (group.flat && !(group.touched && whole)) {
    pen.drawImage(group.flat, 0, 0, group.width, group.height);
    return canvas;
  }
  if (group.ground) {
    pen.fillStyle = group.ground;
    pen.fillRect(0, 0, group.width, group.height);
  }
  for (const layer of group.layers) if (layer.visible && layer.bitmap) paint(pen, layer);
  return canvas;
}

function paint(pen, layer) {
  const { x, y, width, height, rotate, flip, bitmap } = layer;
  pen.save();
  pen.globalAlpha = layer.opacity;
  pen.globalCompositeOperation = BLENDS[layer.blend] ?? layer.blend ?? "source-over";
  pen.translate(x + width / 2, y + height / 2);
  if (rotate) pen.rotate((rotate * Math.PI) / 180);
  pen.scale(flip === "horizontal" || flip === "both" ? -1 : 1, flip === "vertical" || flip === "both" ? -1 : 1);
  const [wide, high] = rotate ? unrotated(bitmap, layer) : [width, height];
  pen.drawImage(bitmap, -wide / 2, -high / 2, wide, high);
  pen.restore();
}

/** The size of a picture before it was turned, from that of the rectangle around it. */
function unrotated(bitmap, { width, rotate }) {
  const angle = (rotate * Math.PI) / 180;
  const around = Math.abs(bitmap.width * Math.cos(angle)) + Math.abs(bitmap.height * Math.sin(angle));
  return [(bitmap.width * width) / around, (bitmap.height * width) / around];
}

/** What the alpha of a canvas holds, in the words of the server's results. */
function alphaFacts(canvas) {
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  let clear = 0, solid = 0, left = width, top = height, right = 0, bottom = 0;
  for (let at = 3, pixel = 0; at < data.length; at += 4, pixel++) {
    if (data[at] >= 251) solid++;
    if (data[at] <= 4) clear++;
    else {
      const x = pixel % width, y = (pixel - x) / width;
      left = Math.min(left, x); right = Math.max(right, x + 1); top = Math.min(top, y); bottom = y + 1;
    }
  }
  if (solid === width * height) return "fully opaque";
  if (clear === width * height) return "100% transparent: nothing is visible";
  const part = (count) => {
    const share = (100 * count) / (width * height);
    return share > 0 && share < 0.5 ? "<1%" : share >= 99.5 && share < 100 ? ">99%" : `${Math.round(share)}%`;
  };
  const box = `visible from ${left}, ${top} to ${right}, ${bottom}`;
  return `${part(clear)} transparent, ${part(width * height - clear - solid)} partial; ${box}`;
}

function alphaAsGrey(canvas) {
  const grey = new OffscreenCanvas(canvas.width, canvas.height);
  const image = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < image.data.length; at += 4) {
    image.data.fill(image.data[at + 3], at, at + 3);
    image.data[at + 3] = 255;
  }
  grey.getContext("2d").putImageData(image, 0, 0);
  return grey;
}

/** The call that makes a file of what is seen: of a composition its changes, else a new one. */
function composing(group) {
  if (group.path) {
    const replace = {};
    for (const { name, x, y, visible, was } of group.layers) {
      const change = {};
      if (x !== was.x || y !== was.y) Object.assign(change, { x, y });
      if (visible !== was.visible) change.visible = visible;
      if (Object.keys(change).length) replace[name] = change;
    }
    return { source: group.path, replace };
  }
  const layers = group.layers.filter((layer) => layer.visible);
  return {
    layers: layers.map(({ name, uri, x, y }) => ({ image: uri, name, x, y })),
    canvas: { size: `${group.width}x${group.height}` },
  };
}
