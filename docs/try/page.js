// Files -> canvases -> PNG files. The network itself runs in worker.js.
const SCALE = 4;
const LONGEST = 16384; // the side of the largest canvas that every common browser makes
const MODEL = new URL("./fast.onnx", import.meta.url);
const MISSING = "fast.onnx is not beside this page; run `make try` in a checkout";

const find = (id) => document.getElementById(id);
const queue = [];
let model; // its bytes, kept for a new worker after a cancelled run
let worker;
let threads = 0;
let current; // the image under way: { name, canvas, context, began, settle }

function tell(text, isError = false) {
  find("status").textContent = text;
  find("status").classList.toggle("error", isError);
}

async function start() {
  const answer = await fetch(MODEL, { cache: "no-cache" }); // another network of the same name is not this one
  if (!answer.ok) throw new Error(MISSING);
  model = await answer.arrayBuffer();
  await startWorker();
  tell(`ready (${threads} thread${threads === 1 ? "" : "s"})`);
  next();
}

function startWorker() {
  threads = 0;
  worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  return new Promise((resolve, reject) => {
    worker.onerror = (event) => reject(new Error(event.message || "onnxruntime-web is not beside this page; run `make try`"));
    worker.onmessage = ({ data }) => {
      if (data.ready) {
        threads = data.ready;
        worker.onmessage = ({ data: message }) => onTile(message).catch((error) => fail(error));
        resolve();
      } else {
        reject(new Error(data.error));
      }
    };
    worker.postMessage({ model });
  });
}

function add(files) {
  queue.push(...files);
  next();
}

async function next() {
  if (current || !threads || !queue.length) return;
  const file = queue.shift();
  current = { name: file.name || "pasted.png" };
  try {
    await begin(file);
  } catch (error) {
    fail(error);
  }
}

// Stays in the list: the next image's progress takes the status line.
function fail(error) {
  const item = document.createElement("li");
  item.className = "error";
  item.textContent = `${current.name}: ${error.message}`;
  find("results").prepend(item);
  finish(item.textContent, true);
}

async function begin(file) {
  // The file's own values: neither converted between colour spaces nor multiplied with its transparency.
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none", imageOrientation: "from-image" };
  const image = await createImageBitmap(file, options).catch(() => {
    throw new Error("is no image that this browser can read");
  });
  const { width, height } = image;
  if (SCALE * Math.max(width, height) > LONGEST) {
    throw new Error(`is ${width}x${height}: browsers make no image larger than ${LONGEST}; use infer.py`);
  }
  const small = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  small.drawImage(image, 0, 0);
  const { data } = small.getImageData(0, 0, width, height);
  const canvas = document.createElement("canvas");
  canvas.width = SCALE * width;
  canvas.height = SCALE * height;
  const isOpaque = data.every((value, index) => index % 4 !== 3 || value === 255);
  Object.assign(current, { image, canvas, context: canvas.getContext("2d"), isOpaque, began: performance.now() });
  find("work").hidden = false;
  find("progress").value = 0;
  tell(`${current.name}: ${width}x${height} to ${canvas.width}x${canvas.height}`);
  worker.postMessage({ rgba: data, width, height }, [data.buffer]);
}

async function onTile({ error, pixels, x, y, done }) {
  if (error) throw new Error(error);
  current.context.putImageData(new ImageData(pixels.data, pixels.width, pixels.height), x, y);
  find("progress").value = done;
  const spent = (performance.now() - current.began) / 1000;
  if (done < 1) return tell(`${current.name}: ${Math.round(100 * done)} %, about ${Math.ceil(spent / done - spent)} s left`);
  if (!current.isOpaque) maskByAlpha(current);
  await show(current);
  finish(`${current.name}: done in ${spent.toFixed(1)} s`);
}

// Transparency is enlarged by the browser: the network knows colours only.
function maskByAlpha({ context, image, canvas }) {
  context.globalCompositeOperation = "destination-in";
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  context.globalCompositeOperation = "source-over";
}

async function show({ name, image, canvas }) {
  const item = find("result").content.cloneNode(true).firstElementChild;
  item.querySelector("h2").textContent = `${name}, ${canvas.width}x${canvas.height}`;
  for (const [kind, picture] of [["after", canvas], ["before", image]]) {
    const view = item.querySelector(`.${kind}`);
    view.width = canvas.width;
    view.height = canvas.height;
    const context = view.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  }
  item.querySelector(".split").oninput = ({ target }) => {
    item.querySelector(".before").style.clipPath = `inset(0 ${100 - target.value}% 0 0)`;
  };
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  if (!blob) throw new Error("this browser has no memory left for the image");
  const link = item.querySelector(".save");
  link.href = URL.createObjectURL(blob);
  link.download = `${name.replace(/\.[^.]*$/, "")}_x${SCALE}.png`;
  find("results").prepend(item);
}

function finish(text, isError = false) {
  current = undefined;
  find("work").hidden = true;
  tell(text, isError);
  next();
}

find("cancel").onclick = async () => {
  worker.terminate();
  queue.length = 0;
  const restarted = startWorker();
  finish("cancelled");
  await restarted.then(next, (error) => tell(error.message, true));
};
find("file").onchange = ({ target }) => {
  add(target.files);
  target.value = ""; // so that the same file can be chosen again
};
document.addEventListener("paste", ({ clipboardData }) => add(clipboardData.files));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    find("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") add(event.dataTransfer.files);
  });
}

start().catch((error) => tell(error.message, true));
