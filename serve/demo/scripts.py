"""What the pages do in the browser, apart from what Gradio does: small pieces, each for one piece of page."""

from __future__ import annotations

# Clicks on whatever carries data-id or data-do, wherever it is drawn inside the component.
PICK = """element.addEventListener('click', event => {
  const button = event.target.closest('[data-do], [data-id]');
  if (button) trigger('pick', {do: button.dataset.do || '', id: button.dataset.id || ''});
});"""
# On a phone the result lies below the controls.
TO_RESULT = """() => {
  if (innerWidth < 700) document.querySelector('#fv-boxes').scrollIntoView({behavior: 'smooth', block: 'start'});
}"""
TO_HITS = TO_RESULT.replace("#fv-boxes", "#fv-results")
# A press on a mark shows at once; the server is told beside.
MARK = """element.addEventListener('click', event => {
  const button = event.target.closest('[data-do], [data-id]');
  if (!button) return;
  if (button.hasAttribute('aria-pressed')) {
    const on = button.getAttribute('aria-pressed') !== 'true';
    for (const mark of button.parentElement.children) mark.setAttribute('aria-pressed', 'false');
    button.setAttribute('aria-pressed', String(on));
  }
  else if (button.dataset.do !== 'more') scrollTo({top: 0, behavior: 'smooth'});
  trigger('pick', {do: button.dataset.do || 'like', id: button.dataset.id || ''});
});"""
UP = "element.addEventListener('click', () => scrollTo({top: 0, behavior: 'smooth'}));"
# Copies the command beside a button; and a page that nobody looks at asks for no news.
MODELS = """element.addEventListener('click', async event => {
  const button = event.target.closest('[data-copy]');
  if (!button) return;
  const code = button.parentElement.querySelector('code');
  try { await navigator.clipboard.writeText(code.textContent); }
  catch {  // browsers keep the clipboard to https and this machine
    getSelection().selectAllChildren(code);
    document.execCommand('copy');
  }
  button.textContent = 'Copied';
  setTimeout(() => { button.textContent = 'Copy'; }, 1500);
});
document.addEventListener('visibilitychange', () => trigger('pick', {do: document.hidden ? 'away' : 'back'}));"""
# Dragging over the picture, by mouse or finger, draws the region to search with.
REGION = (
    PICK
    + """
let from = null, box = null;
const within = event => {
  const edge = element.querySelector('[data-region]').getBoundingClientRect();
  const share = value => Math.min(1, Math.max(0, value));
  return [share((event.clientX - edge.left) / edge.width), share((event.clientY - edge.top) / edge.height)];
};
element.addEventListener('pointerdown', event => {
  if (!event.target.closest('[data-region]')) return;
  event.preventDefault();
  from = within(event);
});
addEventListener('pointermove', event => {
  if (!from || !element.querySelector('[data-region]')) return;
  const to = within(event), drawn = element.querySelector('.fv-drawn');
  box = [Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.max(from[0], to[0]), Math.max(from[1], to[1])];
  drawn.hidden = false;
  drawn.style.cssText = `left:${box[0] * 100}%;top:${box[1] * 100}%;width:${(box[2] - box[0]) * 100}%;` +
    `height:${(box[3] - box[1]) * 100}%`;
});
const end = () => {
  if (from && box) trigger('pick', {do: 'region', id: box.map(edge => edge.toFixed(4)).join(',')});
  from = box = null;
};
addEventListener('pointerup', end);
addEventListener('pointercancel', () => { from = box = null; });"""
)
# The page's address follows what is looked for; going back looks for what was there before.
LINK = """watch('value', () => {
  const link = element.querySelector('a');
  if (!link || 'still' in link.dataset || link.search === location.search) return;
  history.pushState(null, '', link.search || location.pathname);
});
addEventListener('popstate', () => trigger('open', {link: location.search}));"""
# The box at hand: moved and sized by mouse, finger or arrow keys, named by digits, decided by a letter.
REVIEW = """const card = () => element.querySelector('.fv-review');
const read = () => JSON.parse(card().dataset.case);
const paint = () => {
  if (!card()) return;
  const now = read(), [x1, y1, x2, y2] = now.box;
  for (const rect of element.querySelectorAll('[data-mine]')) {
    rect.setAttribute('x', x1); rect.setAttribute('y', y1);
    rect.setAttribute('width', x2 - x1); rect.setAttribute('height', y2 - y1);
  }
  for (const corner of element.querySelectorAll('[data-corner]')) {
    const [right, low] = corner.dataset.corner;
    corner.setAttribute('transform', `translate(${right === '1' ? x2 : x1} ${low === '1' ? y2 : y1})`);
  }
  for (const chip of element.querySelectorAll('[data-label]'))
    chip.setAttribute('aria-pressed', String(chip.dataset.label === now.label));
  const closer = element.querySelector('[data-closer]');
  const side = Math.max(x2 - x1, y2 - y1) * Number(closer.dataset.closer);
  closer.setAttribute('viewBox', `${(x1 + x2 - side) / 2} ${(y1 + y2 - side) / 2} ${side} ${side}`);
  closer.style.setProperty('--stroke', side / 90);
};
const put = change => { card().dataset.case = JSON.stringify({...read(), ...change}); paint(); };
const shift = (box, dx, dy, size) => {
  const [width, height] = read().size;
  let [x1, y1, x2, y2] = box;
  if (size) {
    x2 = Math.min(width, Math.max(x1 + 1, x2 + dx)); y2 = Math.min(height, Math.max(y1 + 1, y2 + dy));
  } else {
    dx = Math.min(Math.max(dx, -x1), width - x2); dy = Math.min(Math.max(dy, -y1), height - y2);
    [x1, y1, x2, y2] = [x1 + dx, y1 + dy, x2 + dx, y2 + dy];
  }
  put({box: [x1, y1, x2, y2]});
};
let sent = '';
const decide = what => {
  if (card() && ['accept', 'reject'].includes(what)) {
    const {case: number, label, box} = read();
    if (sent === card().dataset.start) return;  // pressed twice: the next box is on its way
    sent = card().dataset.start;
    setTimeout(() => { sent = ''; }, 1500);
    const moved = JSON.stringify(box) !== JSON.stringify(JSON.parse(card().dataset.start).box);
    trigger('pick', {do: what, said: JSON.stringify({case: number, label, ...(moved ? {box} : {})})});
  } else trigger('pick', {do: what, said: ''});
};
element.addEventListener('click', event => {
  const button = event.target.closest('[data-do], [data-label]');
  if (!button) return;
  if (button.dataset.label) put({label: button.dataset.label}); else decide(button.dataset.do);
});
const keys = {a: 'accept', r: 'reject', u: 'undo', n: 'next', p: 'back', Enter: 'accept', Backspace: 'undo'};
const ways = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
document.addEventListener('keydown', event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest('input, textarea, select')) return;
  if (event.key === 'Enter' && event.target.closest('button, a')) return;  // that one is pressed
  const chip = /^[0-9]$/.test(event.key) && element.querySelectorAll('[data-label]')[(Number(event.key) + 9) % 10];
  if (chip) put({label: chip.dataset.label});
  else if (ways[event.key] && card()) {
    const step = Math.max(1, Math.max(...read().size) / 200);
    shift(read().box, ways[event.key][0] * step, ways[event.key][1] * step, event.shiftKey);
  } else if (keys[event.key]) decide(keys[event.key]);
  else return;
  event.preventDefault();
});
let drag = null;
const within = event => {
  const edge = element.querySelector('[data-stage]').getBoundingClientRect(), [width, height] = read().size;
  const scale = Math.min(edge.width / width, edge.height / height);  // the picture is centred in its place
  const left = edge.left + (edge.width - width * scale) / 2, top = edge.top + (edge.height - height * scale) / 2;
  const clamp = (value, most) => Math.min(most, Math.max(0, value));
  return [clamp((event.clientX - left) / scale, width), clamp((event.clientY - top) / scale, height)];
};
element.addEventListener('pointerdown', event => {
  const corner = event.target.closest('[data-corner]');
  if (!corner && !event.target.closest('.fv-mine')) return;
  event.preventDefault();
  drag = {from: within(event), box: read().box, corner: corner && corner.dataset.corner};
});
addEventListener('pointermove', event => {
  if (!drag || !card()) return;
  const to = within(event);
  if (!drag.corner) return shift(drag.box, to[0] - drag.from[0], to[1] - drag.from[1], false);
  let [x1, y1, x2, y2] = drag.box;
  if (drag.corner[0] === '1') x2 = Math.max(x1 + 1, to[0]); else x1 = Math.min(x2 - 1, to[0]);
  if (drag.corner[1] === '1') y2 = Math.max(y1 + 1, to[1]); else y1 = Math.min(y2 - 1, to[1]);
  put({box: [x1, y1, x2, y2]});
});
addEventListener('pointerup', () => { drag = null; });
addEventListener('pointercancel', () => { drag = null; });
watch('value', paint);
paint();"""
