// The viewer's frame, and data of a result -> HTML. Nothing here touches the page.

export const FRAME = `
<link rel="stylesheet" href="/studio/static/viewer.css">
<div class="viewer" hidden>
  <div class="images" role="group" aria-label="Images"></div>
  <div class="bar">
    <label>Left <select data-role="left"></select></label>
    <label>Right <select data-role="right"></select></label>
    <label class="maps">Map <select data-role="map"></select></label>
    <label class="maps">Strength <input data-role="strength" type="range" min="0" max="100" aria-label="Strength of the map"></label>
    <span class="zoom" role="group" aria-label="Zoom">
      <button type="button" data-zoom="out" title="Smaller (-)" aria-label="Zoom out">&minus;</button>
      <output data-role="scale">100 %</output>
      <button type="button" data-zoom="in" title="Larger (+)" aria-label="Zoom in">+</button>
      <button type="button" data-zoom="fit" title="Whole image (0)">Fit</button>
      <button type="button" data-zoom="one" title="Actual pixels (1)">1:1</button>
    </span>
  </div>
  <div class="body">
    <div class="main">
      <div class="stage" tabindex="0" role="img" aria-describedby="keys">
        <div class="scene">
          <img class="right" alt=""><img class="left" alt=""><img class="map" alt="" hidden>
          <div class="pin" hidden></div>
        </div>
        <div class="split"><span></span></div>
        <span class="tag l"></span><span class="tag r"></span>
      </div>
      <input class="slider" data-role="split" type="range" min="0" max="100" step="0.1" aria-label="Before and after">
      <div class="legend"></div>
    </div>
    <aside>
      <section class="values" aria-live="polite"></section>
      <p class="keys" id="keys">Drag the line, or the picture when it is enlarged; maps lie to the right of the line. Click a pixel to keep
        its values.
        Keys on the picture: <kbd>+</kbd> <kbd>-</kbd> <kbd>0</kbd> <kbd>1</kbd> zoom, arrows move,
        <kbd>Shift</kbd> + arrows move the mark, <kbd>M</kbd> next map.</p>
    </aside>
  </div>
  <div class="below">
    <section class="facts"></section>
    <section class="files"></section>
  </div>
  <details class="manifest"><summary>Manifest: what made this image</summary><pre></pre></details>
</div>
<p class="notice" role="status">Loading the pictures&hellip;</p>`;

const escapes = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
export const text = (value) => String(value).replace(/[&<>"']/g, (one) => escapes[one]);
const fixed = (value, digits) => Number(value).toFixed(digits);
export const between = (value, low, high) => Math.min(Math.max(value, low), high);

export function legendOf(image, map) {
  const scale = "low" in map
    ? `<div class="colour-bar"><span>&le; ${fixed(map.low, 3)}</span>
       <i style="background:linear-gradient(90deg, ${image.colour_bar.join(", ")})"></i><span>${fixed(map.high, 3)} &le;</span></div>`
    : `<ul>${image.experts.map((one) => `<li><i style="background:${one.colour}"></i>${text(one.name)}</li>`).join("")}</ul>`;
  return `${scale}<p><b>${text(map.label)}</b>: ${text(map.meaning)}.</p>`;
}

export function factsOf(image) {
  const steps = Object.entries(image.seconds);
  const rest = Math.max(0, image.total - steps.reduce((sum, [, seconds]) => sum + seconds, 0));
  steps.push(["other", rest]);
  const longest = Math.max(...steps.map(([, seconds]) => seconds), 1e-9);
  const rows = steps.map(([name, seconds]) => meter(name, seconds / longest, `${fixed(seconds, 2)} s`, colourOf(image, name)));
  const lines = [];
  if (image.plan) {
    lines.push(`${fixed(100 * image.plan.spent, 0)} % of the full expert cost, predicted loss ${fixed(image.plan.predicted_loss_db, 3)} dB`);
  }
  for (const [name, value] of Object.entries(image.guard)) lines.push(`refined, ${name.replaceAll("_", " ")}: ${fixed(value, 3)}`);
  lines.push(...image.events);
  const [width, height] = [image.width / image.scale, image.height / image.scale];
  lines.push(`${width}\u00d7${height} \u2192 ${image.width}\u00d7${image.height}, ${image.tiles} ${image.tiles === 1 ? "tile" : "tiles"}`);
  return `<h3>Time <small>${fixed(image.total, 2)} s in total</small></h3>${rows.join("")}${lines.map((one) => `<p>${text(one)}</p>`).join("")}`;
}

export function filesOf(image) {
  const links = image.files.map(
    (one) => `<a href="${one.url}" download="${text(one.name)}">${text(one.name)} <small>${size(one.bytes)}</small></a>`
  );
  return `<h3>Download</h3>${links.join("")}`;
}

export function valuesOf(image, values, kept) {
  const weights = Object.entries(values.weights);
  const most = Math.max(1, ...weights.map(([, value]) => Math.abs(value)));
  const bars = weights.map(([name, value]) => meter(name, Math.abs(value) / most, fixed(value, 3), colourOf(image, name)));
  const line = (name, value) => `<tr><th>${text(name)}</th><td>${value}</td></tr>`;
  const levels = (value) => `${fixed(value, 2)} <small>levels</small>`;
  const others = Object.entries(values.others).map(([name, value]) => line(name, name === "difficulty" ? fixed(value, 3) : levels(value)));
  const phases = Object.entries(values.phases).map(([name, value]) => line(`added by ${name}`, levels(value)));
  const colours = Object.entries(values.colours).map(([name, rgb]) => line(name, `<i style="background:rgb(${rgb})"></i>${rgb.join(" ")}`));
  return `<h3>${weights.length ? "Expert weights" : "Pixel"} <small>${kept ? "mark" : "cursor"} ${values.x}, ${values.y}</small></h3>
    <div class="weights">${bars.join("")}</div>
    <table>${others.join("")}${phases.join("")}</table><table>${colours.join("")}</table>`;
}

function colourOf(image, name) {
  return image.experts.find((one) => one.name === name)?.colour;
}

function meter(name, share, value, colour) {
  const fill = `width:${(100 * between(share, 0, 1)).toFixed(1)}%;${colour ? `background:${colour}` : ""}`;
  return `<div class="meter"><span>${text(name)}</span><i><b style="${fill}"></b></i><em>${value}</em></div>`;
}

function size(bytes) {
  return bytes < 1e5 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
