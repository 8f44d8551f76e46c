// Elements without markup in strings: what comes from the database is only ever text.

/** Make an element: `h("p", { class: "note", onclick }, "text", child)`. */
export function h(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) set(element, key, value);
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Make an SVG element. */
export function s(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** Find by id. */
export function id(name) {
  return document.getElementById(name);
}

/** Set text where it differs: what did not change is not announced again. */
export function text(element, content) {
  if (element.textContent !== content) element.textContent = content;
}

/** A command with a button that copies it. */
export function command(line) {
  const button = h("button", { class: "quiet copy", type: "button", onclick: () => copy(line, button) }, "Copy");
  return h("div", { class: "command" }, h("code", {}, line), button);
}

/** Put text on the clipboard and say so on the button. */
export async function copy(line, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(line);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed";
  }
  setTimeout(() => (button.textContent = before), 1500);
}

function set(element, key, value) {
  if (value === undefined || value === null || (value === false && !key.startsWith("aria-"))) return;
  if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
  else if (key === "class") element.className = value;
  else if (key.startsWith("aria-")) element.setAttribute(key, String(value));
  else element.setAttribute(key, value === true ? "" : value);
}
