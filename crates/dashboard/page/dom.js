// Elements without markup: texts are always texts, so that nothing a model says becomes part of the page.

const SVG = 'http://www.w3.org/2000/svg';

function fill(node, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (name === 'style') Object.assign(node.style, value);
    else node.setAttribute(name === 'cls' ? 'class' : name, value === true ? '' : value);
  }
  node.append(...children.flat().filter(child => child !== undefined && child !== null && child !== false));
  return node;
}

// An HTML element: attributes, `cls` for its class, `onclick` and the like for listeners, then its children.
export const el = (tag, properties, ...children) => fill(document.createElement(tag), properties, children);

// An SVG element.
export const svg = (tag, properties, ...children) => fill(document.createElementNS(SVG, tag), properties, children);

// Puts these children into an element, in place of what it has.
export function put(node, ...children) {
  node.replaceChildren(...children.flat().filter(child => child !== undefined && child !== null && child !== false));
}

// A table in a box that scrolls by itself: a wide one does not make the page wide.
export function table(label, head, rows) {
  const cell = (tag, content) => {
    const { text, cls, title } =
      content !== null && typeof content === 'object' && !(content instanceof Node) ? content : { text: content };
    return el(
      tag,
      { cls, title, scope: tag === 'th' ? 'col' : undefined },
      text instanceof Node ? text : String(text ?? '–'),
    );
  };
  const body = rows.map(row =>
    el(
      'tr',
      { cls: row.cls },
      (row.cells ?? row).map(content => cell('td', content)),
    ),
  );
  return el(
    'div',
    { cls: 'table', tabindex: 0, role: 'region', 'aria-label': label },
    el(
      'table',
      {},
      el(
        'thead',
        {},
        el(
          'tr',
          {},
          head.map(content => cell('th', content)),
        ),
      ),
      el('tbody', {}, body),
    ),
  );
}

// A bar that is filled to a share between 0 and 1.
export function meter(label, share, hot = false) {
  const percent = Math.max(0, Math.min(100, 100 * (share || 0)));
  return el(
    'div',
    {
      cls: hot ? 'meter hot' : 'meter',
      role: 'meter',
      'aria-label': label,
      'aria-valuemin': 0,
      'aria-valuemax': 100,
      'aria-valuenow': Math.round(percent),
    },
    el('div', { style: { width: `${percent}%` } }),
  );
}
