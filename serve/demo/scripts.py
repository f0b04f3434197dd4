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
