/** Elements without templates: text is never read as HTML. */

type Child = Node | string | null | false;
type Props = Record<string, string | number | boolean | EventListener | null>;

/** Return an element; `on…` members are listeners, true and false set or leave out an attribute. */
export function h<K extends keyof HTMLElementTagNameMap>(tag: K, props: Props = {}, ...children: Child[]): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  setProps(element, props);
  element.append(...children.filter((child) => child !== null && child !== false));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag: string, props: Props = {}, ...children: Child[]): SVGElement {
  const element = document.createElementNS(SVG, tag);
  setProps(element, props);
  element.append(...children.filter((child) => child !== null && child !== false));
  return element;
}

function setProps(element: Element, props: Props): void {
  for (const [name, value] of Object.entries(props)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, String(value));
  }
}

const ICONS = {
  inspect: "M12 3v4M12 17v4M3 12h4M17 12h4M12 12h.01",
  select: "M5 4l6 15 2.2-6.3L19.5 10.5z",
  polygon: "M5 8l8-4 6 7-4 8-9-1z",
  rectangle: "M4 6h16v12H4z",
  subtract: "M4 4h12v5h4v11H9v-4H4zM13 12h4",
  area: "M4 4h4M16 4h4M4 20h4M16 20h4M4 4v4M4 16v4M20 4v4M20 16v4M9 12l2 2 4-4",
  undo: "M9 14l-5-5 5-5M4 9h10a6 6 0 0 1 0 12h-3",
  redo: "M15 14l5-5-5-5M20 9H10a6 6 0 0 0 0 12h3",
  help: "M9 9a3 3 0 1 1 4.2 2.8c-.8.4-1.2 1-1.2 2.2M12 17.5h.01",
  theme: "M12 4a8 8 0 1 0 8 8 6 6 0 0 1-8-8z",
  swipe: "M12 3v18M8 8l-4 4 4 4M16 8l4 4-4 4",
  close: "M6 6l12 12M18 6L6 18",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  down: "M12 4v11M7 11l5 5 5-5M5 20h14",
  eye: "M2.5 12s3.5-6 9.5-6 9.5 6 9.5 6-3.5 6-9.5 6-9.5-6-9.5-6zM12 12h.01",
  fit: "M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5",
} as const;

export type IconName = keyof typeof ICONS;

export function icon(name: IconName): SVGElement {
  const path = svg("path", { d: ICONS[name] });
  return svg("svg", { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true", focusable: "false" }, path);
}

/** Return a button with an icon and a name for assistive technology and the tooltip. */
export function iconButton(name: IconName, label: string, onclick: () => void, props: Props = {}): HTMLButtonElement {
  return h("button", { type: "button", class: "icon-button", title: label, "aria-label": label, onclick, ...props }, icon(name));
}

export function button(text: string, onclick: () => void, props: Props = {}): HTMLButtonElement {
  return h("button", { type: "button", onclick, ...props }, text);
}

/** Replace an element's children. */
export function fill(element: Element, ...children: Child[]): void {
  element.replaceChildren(...children.filter((child) => child !== null && child !== false));
}

/**
 * Build an element's content again: the control that had the focus has it again, and `details` that were open are open.
 * Both are found again by their `data-key`.
 */
export function rebuild(element: Element, build: () => void): void {
  const { activeElement } = document;
  const focused = element.contains(activeElement) ? activeElement?.getAttribute("data-key") : null;
  const open = [...element.querySelectorAll("details[open]")].map((each) => each.getAttribute("data-key"));
  build();
  for (const each of element.querySelectorAll("details")) each.open ||= open.includes(each.getAttribute("data-key"));
  if (focused) element.querySelector<HTMLElement>(`[data-key="${CSS.escape(focused)}"]`)?.focus();
}

/** Return what the browser keeps for this page; null where the user does not let it keep anything. */
export function storage(kind: "localStorage" | "sessionStorage"): Storage | null {
  try {
    return window[kind];
  } catch {
    return null;
  }
}

/** Whether keys typed there are text. */
export function isTextField(target: EventTarget | null): boolean {
  if (!(target instanceof HTMLElement)) return false;
  return target.matches("textarea, select, input:not([type=checkbox]):not([type=radio]):not([type=range])") || target.isContentEditable;
}
