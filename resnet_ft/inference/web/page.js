// What a person sees and does. `worker.js` beside this file does the work.

const [TOP, MEGA] = [5, 1e6];
const at = (id) => document.getElementById(id);
const cards = new Map();
let model, worker, shots = 0, done = 0, fastest = Infinity;

// An element with a class; what people wrote is always its text, never HTML.
function element(tag, style, ...content) {
  const made = document.createElement(tag);
  if (style) made.className = style;
  made.append(...content);
  return made;
}

function percent(share) { // a model is never certain
  if (share >= 0.9995) return ">99.9%";
  return share < 0.0005 ? "<0.1%" : `${(100 * share).toFixed(1)}%`;
}

function fail(reason) {
  at("loading").hidden = true;
  at("alert").textContent = `The model cannot be used here. ${reason}`;
}

async function start() {
  at("no-script").remove();
  const response = await fetch("model.json");
  if (!response.ok) throw new Error(`model.json could not be loaded (${response.status}).`);
  model = await response.json();
  document.title = at("title").textContent = model.title;
  at("what").textContent = `An image classifier for ${model.classes.length} classes`;
  if (model.runtime !== "./") at("privacy").textContent += ` The runtime comes from ${new URL(model.runtime).host}.`;
  showExamples();
  worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  worker.onerror = (event) => fail(event.message || "Its program could not be loaded.");
  worker.onmessage = ({ data }) => {
    if (data.total) showProgress(data);
    else if (data.failed) fail(data.failed);
    else if (data.ready) showReady(data.ready);
    else showAnswer(data);
  };
  worker.postMessage({ model });
}

function showProgress({ loaded, total }) {
  at("progress").value = loaded / total;
  const [now, all] = [loaded, total].map((bytes) => (bytes / MEGA).toFixed(1));
  at("loading-text").textContent = loaded < total ? `Loading the model: ${now} of ${all} MB` : "Starting the model …";
}

function showReady(seconds) {
  at("loading").hidden = true;
  at("status").textContent = "The model is ready.";
  const names = { fp32: "float32", fp16: "float16", int8: "8-bit integers" };
  const facts = [
    ["Network", model.arch?.replace("timm/", "")],
    ["Model", `${(model.bytes.model / MEGA).toFixed(1)} MB, ${names[model.precision] ?? model.precision}`],
    ["Runtime", `${(model.bytes.runtime / MEGA).toFixed(1)} MB`],
    ["Speed here", element("span", "seconds")],
    ["It sees", `${model.image_size} × ${model.image_size} pixels`],
  ];
  at("facts").replaceChildren(...facts.filter(([, value]) => value).map(([term, value]) =>
    element("div", "", element("dt", "", term), element("dd", "", value))));
  showSpeed(seconds);
}

function showSpeed(seconds) { // browsers go on compiling: later images take less time
  fastest = Math.min(fastest, seconds);
  at("facts").querySelector(".seconds").textContent = `${fastest.toPrecision(2)} s per image, on one thread`;
}

function showExamples() {
  at("examples").hidden = !model.examples.length;
  at("examples").querySelector("ul").replaceChildren(...model.examples.map((file, i) => {
    const image = element("img");
    const name = `Example ${i + 1}`;
    Object.assign(image, { src: file, alt: name });
    const button = element("button", "", image);
    button.type = "button";
    button.onclick = async () => {
      predict([new File([await (await fetch(file)).blob()], name)]);
    };
    return element("li", "", button);
  }));
}

// Ask for an answer for each file. Their cards come first, in the order of the files.
function predict(files) {
  const added = [...files].map((file) => {
    const id = cards.size;
    const card = element("article", "card waiting", element("h2", "", element("bdi", "", file.name)), element("p", "muted", "Waiting …"));
    cards.set(id, card);
    worker.postMessage({ id, file });
    return card;
  });
  at("results").prepend(...added);
  if (added.length) added[0].scrollIntoView({ block: "nearest" });
}

function showAnswer({ id, error, thumbnail, size, probabilities, strangeness, seconds }) {
  const card = cards.get(id);
  const name = card.querySelector("bdi").textContent;
  card.classList.remove("waiting");
  card.lastChild.remove();
  done += 1;
  const remaining = cards.size - done ? `${done} of ${cards.size} pictures. ` : "";
  if (error) {
    card.classList.add("failed");
    card.append(element("p", "", error));
    at("status").textContent = `${remaining}${name}: ${error}`;
    return;
  }
  showSpeed(seconds);
  const order = Array.from(probabilities, (share, label) => [share, model.classes[label]]);
  const top = order.sort(([one], [other]) => other - one).slice(0, TOP);
  const [confidence, best] = top[0];
  const notes = [];
  if (strangeness > model.unfamiliar_above) notes.push("Unlike anything it was trained on: do not rely on this answer.");
  if (confidence < model.unsure_below) notes.push(`Unsure: below ${percent(model.unsure_below)}, it is wrong too often.`);
  const picture = element("canvas");
  Object.assign(picture, { width: thumbnail.width, height: thumbnail.height, role: "img", ariaLabel: name });
  picture.getContext("2d").drawImage(thumbnail, 0, 0);
  const bars = top.map(([share, label]) => {
    const bar = element("i");
    bar.style.width = `${100 * share}%`;
    return element("li", "", element("bdi", "", label), " ", element("span", "", percent(share)), bar);
  });
  card.prepend(element("div", "picture", picture));
  card.append(
    element("p", "answer", element("bdi", "", best), " ", element("span", "", percent(confidence))),
    ...notes.map((note) => element("p", "note", note)),
    element("ol", "bars", ...bars),
    element("p", "muted small", `${size.join(" × ")} pixels, answered in ${seconds.toPrecision(2)} s`));
  at("status").textContent = `${remaining}${name}: ${best}, ${percent(confidence)}. ${notes.join(" ")}`;
}

async function openCamera() {
  const video = at("viewfinder").querySelector("video");
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: 1920 } });
  } catch (error) {
    at("alert").textContent = `The camera cannot be used: ${error.message}`;
    return;
  }
  at("alert").textContent = "";
  at("viewfinder").showModal();
  await video.play();
}

function take() {
  const video = at("viewfinder").querySelector("video");
  const frame = Object.assign(element("canvas"), { width: video.videoWidth, height: video.videoHeight });
  frame.getContext("2d").drawImage(video, 0, 0);
  frame.toBlob((content) => predict([new File([content], `Camera ${(shots += 1)}`)]));
  at("viewfinder").close();
}

at("viewfinder").onclose = () => at("viewfinder").querySelector("video").srcObject?.getTracks().forEach((track) => track.stop());
at("take").onclick = take;
at("close").onclick = () => at("viewfinder").close();
at("choose").onclick = () => at("files").click();
at("camera").onclick = () => {
  const isPhone = matchMedia("(pointer: coarse)").matches || !navigator.mediaDevices?.getUserMedia;
  isPhone ? at("shot").click() : openCamera();
};
for (const input of [at("files"), at("shot")]) {
  input.onchange = () => {
    predict(input.files);
    input.value = ""; // so that the same file can be chosen again
  };
}
document.onpaste = ({ clipboardData }) => predict(clipboardData.files);
document.ondragover = (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
};
document.ondragleave = (event) => event.relatedTarget || at("drop").classList.remove("over");
document.ondrop = (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  predict(event.dataTransfer.files);
};
start().catch((error) => fail(error.message));
