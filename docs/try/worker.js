// LR pixels -> SR pixels, tile by tile, by onnxruntime-web on this machine's processor. Runs beside the page, so that
// the page stays responsive and a run can be cancelled by ending the worker.
import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";

const SCALE = 4;
const TILE = 96; // LR pixels: 128 with its margins, some 100 MB of activations
const MARGIN = 16; // what infer.py gives its tiles around them

ort.env.wasm.wasmPaths = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url).href;
// Browsers give out shared memory, hence threads, only to pages that are served as isolated (docs/export.md).
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(8, navigator.hardwareConcurrency || 1) : 1;

let session;

self.onmessage = async ({ data }) => {
  try {
    if (data.model) {
      session = await ort.InferenceSession.create(data.model, { executionProviders: ["wasm"] });
      self.postMessage({ ready: ort.env.wasm.numThreads });
    } else {
      await enlarge(data.rgba, data.width, data.height);
    }
  } catch (error) {
    self.postMessage({ error: String(error?.message ?? error) });
  }
};

async function enlarge(rgba, width, height) {
  const rows = Math.ceil(height / TILE);
  const columns = Math.ceil(width / TILE);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const tile = span(column, width);
      Object.assign(tile, rename(span(row, height)));
      const pixels = await runTile(rgba, width, tile);
      const done = (row * columns + column + 1) / (rows * columns);
      self.postMessage({ pixels, x: tile.keepLeft * SCALE, y: tile.keepTop * SCALE, done }, [pixels.data.buffer]);
    }
  }
}

// Where a tile is cut, with its margins, and which part of it is kept.
function span(index, size) {
  const keepLeft = index * TILE;
  const keepRight = Math.min(size, keepLeft + TILE);
  return { left: Math.max(0, keepLeft - MARGIN), right: Math.min(size, keepRight + MARGIN), keepLeft, keepRight };
}

function rename({ left, right, keepLeft, keepRight }) {
  return { top: left, bottom: right, keepTop: keepLeft, keepBottom: keepRight };
}

async function runTile(rgba, width, tile) {
  const h = tile.bottom - tile.top;
  const w = tile.right - tile.left;
  const lr_CHW = new Float32Array(3 * h * w);
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < w; x++) {
      const from = 4 * ((tile.top + y) * width + tile.left + x);
      for (let c = 0; c < 3; c++) lr_CHW[(c * h + y) * w + x] = rgba[from + c] / 255;
    }
  }
  const { output } = await session.run({ data: new ort.Tensor("float32", lr_CHW, [1, 3, h, w]) });
  const [, , srHeight, srWidth] = output.dims;
  if (srHeight !== SCALE * h || srWidth !== SCALE * w) throw new Error(`the model is no ${SCALE}x network`);
  return keep(output.data, srHeight, srWidth, tile);
}

function keep(sr_CHW, srHeight, srWidth, tile) {
  const top = SCALE * (tile.keepTop - tile.top);
  const left = SCALE * (tile.keepLeft - tile.left);
  const height = SCALE * (tile.keepBottom - tile.keepTop);
  const width = SCALE * (tile.keepRight - tile.keepLeft);
  const data = new Uint8ClampedArray(4 * height * width);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const to = 4 * (y * width + x);
      for (let c = 0; c < 3; c++) {
        const value = sr_CHW[(c * srHeight + top + y) * srWidth + left + x];
        if (!Number.isFinite(value)) throw new Error("the network's output holds NaN or infinity");
        data[to + c] = 255 * value; // rounded and clamped by the array itself
      }
      data[to + 3] = 255;
    }
  }
  return { data, width, height };
}
