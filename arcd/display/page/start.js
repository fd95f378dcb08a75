// The report's script, in five files that report.py copies one after the other into its page.
// It stays usable with 20 000 tasks: cards of tasks are made a page at a time, grids are unpacked
// when their task comes into view, and of what is smaller than a pixel one is drawn.
"use strict";
const begun = performance.now();
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function draw(name, attributes = {}, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function duration(seconds) {
  const whole = Math.round(seconds);
  const pad = n => String(n).padStart(2, "0");
  const minutes = Math.floor(whole / 60) % 60, hours = Math.floor(whole / 3600);
  return hours ? `${hours}:${pad(minutes)}:${pad(whole % 60)}` : `${minutes}:${pad(whole % 60)}`;
}

const percent = share => `${(100 * share).toFixed(1)} %`;

// ---- head and summary

document.title = `arcd: job ${data.job.job}, ${data.job.name}`;
$("title").textContent = `Job ${data.job.job}: ${data.job.name}`;
$("subtitle").textContent = data.subtitle;
for (const [name, value] of data.tiles) {
  $("tiles").append(make("div", {}, make("dt", {}, name), make("dd", {}, value)));
}
$("settings").textContent = JSON.stringify(data.settings, null, 2);
