// <fusion-viewer results="NAME NAME ..."> -> finished images to look at: before and after, maps, values at a pixel.
// Asks only the studio it came from: /studio/results/NAME (what there is), .../picture/N, .../map/N, .../pixel?x=&y=

import { FRAME, between, factsOf, filesOf, legendOf, valuesOf, text } from "./viewer_parts.js";

// Outlives the element: gradio puts a new one into the page with every finished image.
const remembered = { image: null, left: null, right: null, map: "", strength: 60, split: 50 };

const GONE = "These images are no longer kept; run them again.", SOME_GONE = "Some earlier images are no longer kept.";

class FusionViewer extends HTMLElement {
  static observedAttributes = ["results"];

  connectedCallback() {
    if (this.shadowRoot) return;
    this.attachShadow({ mode: "open" }).innerHTML = FRAME;
    const find = (selector) => this.shadowRoot.querySelector(selector);
    this.find = find;
    this.stage = find(".stage");
    this.scene = find(".scene");
    this.view = { zoom: 1, x: 0, y: 0, split: remembered.split };
    this.pinned = null;
    this.listen();
    this.load();
  }

  attributeChangedCallback() {
    if (this.shadowRoot) this.load();
  }

  disconnectedCallback() {
    this.resizes?.disconnect();
  }

  async load() {
    const listed = this.getAttribute("results") || "";
    const names = listed.split(" ").filter(Boolean);
    const answers = await Promise.all(names.map((name) => fetch(`/studio/results/${name}`)));
    const images = await Promise.all(answers.filter((one) => one.ok).map((one) => one.json()));
    if (listed !== this.getAttribute("results")) return; // a later list has come meanwhile
    const notice = this.find(".notice");
    notice.hidden = images.length === names.length && images.length > 0;
    notice.textContent = images.length ? SOME_GONE : GONE;
    this.images = images;
    this.find(".viewer").hidden = !images.length;
    if (!images.length) return;
    this.listImages();
    const before = images.findIndex((one) => one.address === remembered.image);
    if (this.image && before >= 0) this.mark(before); // more images beside the one being looked at
    else this.show(Math.max(before, 0));
  }

  listImages() {
    const row = this.find(".images");
    row.hidden = this.images.length < 2;
    row.innerHTML = this.images
      .map((one, i) => `<button type="button" data-image="${i}"><img src="${one.pictures[0].url}" alt="">${text(one.title)}</button>`)
      .join("");
  }

  show(index) {
    const image = (this.image = this.images[index]);
    remembered.image = image.address;
    this.mark(index);
    const names = image.pictures.map((one) => one.name);
    for (const side of ["left", "right"]) {
      const select = this.find(`[data-role=${side}]`);
      select.innerHTML = names.map((name) => `<option>${text(name)}</option>`).join("");
      const usual = { left: names[0] === "refined" ? "fused" : "bicubic", right: names[0] };
      select.value = names.includes(remembered[side]) ? remembered[side] : usual[side];
    }
    const select = this.find("[data-role=map]");
    select.innerHTML = `<option value="">none</option>` +
      image.maps.map((one) => `<option value="${text(one.name)}">${text(one.label)}</option>`).join("");
    select.value = image.maps.some((one) => one.name === remembered.map) ? remembered.map : "";
    for (const label of this.shadowRoot.querySelectorAll(".maps")) label.hidden = !image.maps.length;
    this.find("[data-role=strength]").value = remembered.strength;
    this.stage.style.setProperty("--shape", `${image.width} / ${image.height}`);
    this.scene.style.width = `${image.width}px`;
    this.scene.style.height = `${image.height}px`;
    this.find(".manifest pre").textContent = image.manifest;
    this.pinned = null;
    this.showFacts();
    this.showPictures();
    this.showMap();
    this.fit();
    // A first pixel right of the line, so that the panel of values is filled before anybody clicks.
    this.pin(Math.floor(image.width * 0.62), Math.floor(image.height * 0.4));
    this.find(".viewer").dataset.ready = "yes";
  }

  mark(index) {
    for (const button of this.shadowRoot.querySelectorAll("[data-image]")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.image) === index));
    }
  }

  showPictures() {
    for (const side of ["left", "right"]) {
      const name = this.find(`[data-role=${side}]`).value;
      const picture = this.image.pictures.find((one) => one.name === name);
      this.find(`.scene .${side}`).src = picture.url;
      this.find(side === "left" ? ".tag.l" : ".tag.r").textContent = name;
    }
    this.stage.setAttribute("aria-label", `${this.image.title}: ${this.find(".tag.l").textContent} on the left, ${this.find(".tag.r").textContent} on the right`);
  }

  showMap() {
    const chosen = this.image.maps.find((one) => one.name === this.find("[data-role=map]").value);
    const picture = this.find(".scene .map");
    remembered.map = chosen ? chosen.name : "";
    picture.hidden = !chosen;
    const legend = this.find(".legend");
    if (!chosen) {
      legend.innerHTML = this.image.maps.length
        ? `<p>Choose a map above to see which expert the network trusts where.</p>`
        : `<p>One expert alone: no weights, so there are no maps.</p>`;
      return;
    }
    if (picture.getAttribute("src") !== chosen.url) picture.src = chosen.url;
    remembered.strength = Number(this.find("[data-role=strength]").value);
    picture.style.opacity = remembered.strength / 100;
    legend.innerHTML = legendOf(this.image, chosen);
  }

  showFacts() {
    this.find(".facts").innerHTML = factsOf(this.image);
    this.find(".files").innerHTML = filesOf(this.image);
  }

  // Where things are: `view` holds the zoom and the scene's corner in stage pixels, and the line in per cent.

  fit() {
    const { clientWidth, clientHeight } = this.stage;
    if (!this.image || !clientWidth) return;
    this.view.fitted = true;
    this.zoomTo(Math.min(clientWidth / this.image.width, clientHeight / this.image.height), 0, 0, true);
  }

  zoomTo(zoom, atX, atY, centred = false) {
    const view = this.view;
    const { clientWidth, clientHeight } = this.stage;
    const least = Math.min(clientWidth / this.image.width, clientHeight / this.image.height, 1) * 0.9;
    const wanted = centred ? zoom : between(zoom, least, 32);
    view.x = atX - ((atX - view.x) * wanted) / view.zoom;
    view.y = atY - ((atY - view.y) * wanted) / view.zoom;
    view.zoom = wanted;
    view.fitted = centred;
    this.layOut();
  }

  layOut() {
    const view = this.view;
    const { clientWidth, clientHeight } = this.stage;
    // Smaller than the stage: centred; larger: no gap at its edges.
    const hold = (corner, side, room) => (side <= room ? (room - side) / 2 : between(corner, room - side, 0));
    view.x = hold(view.x, this.image.width * view.zoom, clientWidth);
    view.y = hold(view.y, this.image.height * view.zoom, clientHeight);
    this.scene.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.zoom})`;
    // Enlarged, pixels are drawn as squares: smoothing would hide what is to be compared.
    this.scene.classList.toggle("squares", view.zoom >= 2);
    const split = ((view.split / 100) * clientWidth - view.x) / view.zoom;
    this.find(".scene .left").style.clipPath = `inset(0 ${Math.max(0, this.image.width - split)}px 0 0)`;
    // A map lies on the right side only: moved, the line uncovers the picture below it.
    this.find(".scene .map").style.clipPath = `inset(0 0 0 ${between(split, 0, this.image.width)}px)`;
    this.stage.style.setProperty("--split", `${view.split}%`);
    this.stage.style.setProperty("--zoom", view.zoom);
    this.find("[data-role=scale]").textContent = `${Math.round(view.zoom * 100)} %`;
    const slider = this.find("[data-role=split]");
    if (Number(slider.value) !== view.split) slider.value = view.split;
  }

  splitAt(percent) {
    this.view.split = remembered.split = between(percent, 0, 100);
    this.layOut();
  }

  pixelAt(event) {
    const box = this.stage.getBoundingClientRect();
    const x = Math.floor((event.clientX - box.left - this.view.x) / this.view.zoom);
    const y = Math.floor((event.clientY - box.top - this.view.y) / this.view.zoom);
    return x >= 0 && y >= 0 && x < this.image.width && y < this.image.height ? [x, y] : null;
  }

  async pin(x, y) {
    const image = this.image;
    x = between(x, 0, image.width - 1);
    y = between(y, 0, image.height - 1);
    const mark = this.find(".pin");
    mark.hidden = false;
    mark.style.left = `${x + 0.5}px`;
    mark.style.top = `${y + 0.5}px`;
    const at = (this.pinnedAt = [x, y]);
    const values = await this.fetchValues(x, y);
    // An answer that comes after a later mark was set belongs to no mark any more.
    if (values && this.image === image && this.pinnedAt === at) {
      this.pinned = values;
      this.showValues(values, true);
    }
  }

  async hover(pixel) {
    // One request at a time: while it is on its way, only the latest place of the cursor is remembered.
    this.wanted = pixel;
    if (this.asking || !pixel) return;
    this.asking = true;
    while (this.wanted) {
      const [x, y] = this.wanted;
      this.wanted = null;
      const values = await this.fetchValues(x, y);
      if (values && this.inside) this.showValues(values, false);
    }
    this.asking = false;
  }

  async fetchValues(x, y) {
    const answer = await fetch(`${this.image.address}/pixel?x=${x}&y=${y}`).catch(() => null);
    return answer?.ok ? answer.json() : null;
  }

  showValues(values, kept) {
    this.find(".values").innerHTML = valuesOf(this.image, values, kept);
    this.find(".viewer").dataset.pixel = `${values.x},${values.y}`;
  }

  listen() {
    const find = this.find;
    this.shadowRoot.addEventListener("change", (event) => {
      const role = event.target.dataset.role;
      if (role === "left" || role === "right") {
        remembered[role] = event.target.value;
        this.showPictures();
      }
      if (role === "map") this.showMap();
    });
    find("[data-role=strength]").addEventListener("input", () => this.showMap());
    find("[data-role=split]").addEventListener("input", (event) => this.splitAt(Number(event.target.value)));
    this.shadowRoot.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button?.dataset.image) this.show(Number(button.dataset.image));
      if (button?.dataset.zoom) this.zoomBy(button.dataset.zoom);
    });
    this.stage.addEventListener("keydown", (event) => this.key(event));
    this.stage.addEventListener("wheel", (event) => {
      // Else a wheel over the picture would no longer scroll the page.
      if (!event.ctrlKey && !event.metaKey && this.shadowRoot.activeElement !== this.stage) return;
      event.preventDefault();
      const box = this.stage.getBoundingClientRect();
      this.zoomTo(this.view.zoom * Math.exp(-event.deltaY / 300), event.clientX - box.left, event.clientY - box.top);
    }, { passive: false });
    this.drag();
    this.resizes = new ResizeObserver(() => this.image && (this.view.fitted ? this.fit() : this.layOut()));
    this.resizes.observe(this.stage);
  }

  drag() {
    const stage = this.stage;
    let held = null;
    stage.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      const line = event.target.closest(".split") !== null;
      held = { line, x: event.clientX, y: event.clientY, moved: false };
      stage.setPointerCapture(event.pointerId);
    });
    stage.addEventListener("pointermove", (event) => {
      this.inside = true;
      if (!held) {
        this.hover(this.pixelAt(event));
        return;
      }
      const [dx, dy] = [event.clientX - held.x, event.clientY - held.y];
      if (!held.moved && Math.hypot(dx, dy) < 4) return; // a click by an unsteady hand is no drag
      held.moved = true;
      if (held.line) {
        const box = stage.getBoundingClientRect();
        this.splitAt((100 * (event.clientX - box.left)) / box.width);
        return;
      }
      this.view.x += dx;
      this.view.y += dy;
      this.view.fitted = false;
      [held.x, held.y] = [event.clientX, event.clientY];
      this.layOut();
    });
    stage.addEventListener("pointerup", (event) => {
      const pixel = held && !held.moved ? this.pixelAt(event) : null;
      held = null;
      if (pixel) this.pin(...pixel);
    });
    stage.addEventListener("pointercancel", () => (held = null));
    stage.addEventListener("pointerleave", () => {
      this.inside = false;
      this.wanted = null;
      if (this.pinned) this.showValues(this.pinned, true);
    });
  }

  zoomBy(how) {
    const { clientWidth, clientHeight } = this.stage;
    const zoom = { in: this.view.zoom * 1.5, out: this.view.zoom / 1.5, one: 1 }[how];
    if (how === "fit") this.fit();
    else this.zoomTo(zoom, clientWidth / 2, clientHeight / 2);
  }

  key(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const zooms = { "+": "in", "=": "in", "-": "out", "0": "fit", "1": "one" };
    const step = steps[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (step && event.shiftKey) {
      this.pin(this.pinnedAt[0] + step[0], this.pinnedAt[1] + step[1]);
    } else if (step) {
      this.view.x -= step[0] * this.stage.clientWidth * 0.1;
      this.view.y -= step[1] * this.stage.clientHeight * 0.1;
      this.layOut();
    } else if (zooms[event.key]) {
      this.zoomBy(zooms[event.key]);
    } else if (event.key === "m" || event.key === "M") {
      const select = this.find("[data-role=map]");
      select.selectedIndex = (select.selectedIndex + 1) % select.options.length;
      this.showMap();
    } else {
      return;
    }
    event.preventDefault();
  }
}

customElements.define("fusion-viewer", FusionViewer);
