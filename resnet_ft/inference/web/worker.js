// A file to probabilities, off the page's own thread: decoded upright, resized as Pillow and
// torchvision do it, cropped, and handed to the network as bytes. Nothing leaves the browser.

const STRIP = 2 ** 21; // pixels that are read at once: a large photograph is never held twice
const LONGEST = 16; // times as long as wide: of a longer image only the middle counts
const THUMBNAIL = 480;
const FINEST = 2 ** 22; // of the shares of pixels, as Pillow has them
const HEIC = ["heic", "heix", "hevc", "heim", "heis", "mif1", "msf1"];
const KERNELS = {
  bilinear: [1, (x) => Math.max(0, 1 - x)],
  bicubic: [2, (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0)],
};

let ort, session, model;
let turn = Promise.resolve(); // one thing after the other

onmessage = ({ data }) => {
  turn = turn.then(() => (data.model ? load(data.model) : answer(data)));
};

async function load(description) {
  try {
    model = description;
    checkCanvas();
    let bytes = 0;
    const total = model.bytes.model + model.bytes.runtime;
    const count = (more) => postMessage({ loaded: (bytes += more), total });
    const [content, runtime, module] = await Promise.all([
      download("model.onnx", count),
      download(`${model.runtime}ort-wasm-simd-threaded.wasm`, count),
      import(`${model.runtime}ort.wasm.bundle.min.mjs`),
    ]);
    ort = module;
    Object.assign(ort.env.wasm, { wasmBinary: runtime.buffer, numThreads: 1 });
    session = await ort.InferenceSession.create(content, { executionProviders: ["wasm"] });
    const square = new Uint8Array(3 * model.image_size ** 2);
    await compute(square); // the first is slower than all others
    postMessage({ ready: (await compute(square)).seconds });
  } catch (error) {
    postMessage({ failed: String(error?.message ?? error) });
  }
}

async function answer({ id, file }) {
  try {
    const bitmap = await decode(file);
    const square = pixels(bitmap, model.preprocessing);
    const thumbnail = reduced(bitmap);
    const size = [bitmap.width, bitmap.height];
    bitmap.close();
    postMessage({ id, thumbnail, size, ...(await compute(square)) }, [thumbnail]);
  } catch (error) {
    postMessage({ id, error: String(error?.message ?? error) });
  }
}

async function compute(square) {
  const side = model.image_size;
  const started = performance.now();
  const found = await session.run({ images: new ort.Tensor("uint8", square, [1, 3, side, side]) });
  const seconds = (performance.now() - started) / 1000;
  return { seconds, probabilities: found.probabilities.data, strangeness: found.strangeness?.data[0] };
}

async function download(address, count) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${address} could not be loaded (${response.status}).`);
  const reader = response.body.getReader();
  const parts = [];
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    count(part.value.length);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

export async function decode(file) {
  try {
    return await createImageBitmap(file, { colorSpaceConversion: "none" }); // upright, by its EXIF
  } catch {
    const head = String.fromCharCode(...new Uint8Array(await file.slice(0, 12).arrayBuffer()));
    if (!head) throw new Error("The file is empty.");
    if (head.slice(4, 8) === "ftyp" && HEIC.includes(head.slice(8))) {
      throw new Error("This browser cannot read HEIC. Save the photograph as JPEG, or open this page in Safari.");
    }
    throw new Error("This is no image that the browser can read, or it is damaged or too large.");
  }
}

// The square in the middle of an image as bytes (3, size, size).
export function pixels(bitmap, { image_size: size, side, interpolation }) {
  const full = [bitmap.width, bitmap.height];
  const short = Math.min(...full);
  const [across, down] = full.map((length) => {
    const kept = Math.min(length, LONGEST * short);
    return weights(length, kept, Math.floor((side * kept) / short), size, KERNELS[interpolation]);
  });
  const rows = narrowed(bitmap, across, down.from, down.to);
  const square = new Uint8ClampedArray(3 * size * size);
  for (let y = 0; y < size; y++) {
    const { first, shares } = down.taps[y];
    for (let x = 0; x < 3 * size; x++) {
      let sum = 0;
      for (let i = 0; i < shares.length; i++) sum += shares[i] * rows[(first - down.from + i) * 3 * size + x];
      square[(x % 3) * size * size + y * size + (x - (x % 3)) / 3] = Math.floor(sum + 0.5);
    }
  }
  return new Uint8Array(square.buffer);
}

// Which pixels of a line each pixel of the middle of a resized line is made of, and with which
// shares: Pillow's antialiased filters (Pillow, src/libImaging/Resample.c).
function weights(length, kept, resized, size, [radius, kernel]) {
  const scale = kept / resized;
  const stretch = Math.max(scale, 1);
  const start = halfToEven((resized - size) / 2);
  const taps = Array.from({ length: size }, (_, x) => {
    const centre = (length - kept) / 2 + (start + x + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - radius * stretch + 0.5));
    const end = Math.min(length, Math.floor(centre + radius * stretch + 0.5));
    const shares = Float64Array.from({ length: end - first }, (_, i) =>
      kernel(Math.abs((first + i - centre + 0.5) / stretch)));
    const sum = shares.reduce((a, b) => a + b);
    return { first, end, shares: shares.map((share) => Math.round((share / sum) * FINEST) / FINEST) };
  });
  return { taps, from: taps[0].first, to: taps[size - 1].end };
}

function halfToEven(number) { // as Python's round
  const down = Math.floor(number);
  return number - down === 0.5 ? down + (down % 2) : Math.round(number);
}

// The rows `from` to `to`, each resized: bytes (rows, size, 3). They are read strip by strip.
function narrowed(bitmap, { taps, from: left, to: right }, from, to) {
  const width = right - left;
  const height = Math.min(to - from, Math.max(1, Math.floor(STRIP / width)));
  const pen = context(width, height);
  const rows = new Uint8ClampedArray((to - from) * taps.length * 3);
  let at = 0;
  for (let top = from; top < to; top += height) {
    const count = Math.min(height, to - top);
    pen.fillStyle = "white"; // below what is transparent
    pen.fillRect(0, 0, width, height);
    pen.drawImage(bitmap, left, top, width, count, 0, 0, width, count);
    const { data } = pen.getImageData(0, 0, width, count);
    for (let y = 0; y < count; y++) {
      for (const { first, shares } of taps) {
        let red = 0, green = 0, blue = 0;
        for (let i = 0, place = 4 * (y * width + first - left); i < shares.length; i++, place += 4) {
          red += shares[i] * data[place];
          green += shares[i] * data[place + 1];
          blue += shares[i] * data[place + 2];
        }
        rows[at++] = Math.floor(red + 0.5);
        rows[at++] = Math.floor(green + 0.5);
        rows[at++] = Math.floor(blue + 0.5);
      }
    }
  }
  return rows;
}

function reduced(bitmap) {
  const scale = Math.min(1, THUMBNAIL / Math.max(bitmap.width, bitmap.height));
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
  const pen = context(width, height);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(bitmap, 0, 0, width, height);
  return pen.canvas.transferToImageBitmap();
}

function context(width, height) {
  return new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
}

// Some browsers put noise into what a page reads, against fingerprints: answers would be wrong.
function checkCanvas() {
  const pen = context(16, 16);
  pen.fillStyle = "rgb(18 52 86)";
  pen.fillRect(0, 0, 16, 16);
  if (pen.getImageData(0, 0, 16, 16).data.some((value, i) => value !== [18, 52, 86, 255][i % 4])) {
    throw new Error("The browser's protection against fingerprinting changes the pixels that this page reads. Allow it for this page, or open it in another browser.");
  }
}
