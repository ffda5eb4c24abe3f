// Shows new posts at the head of the list as soon as they are there. A hidden tab does not listen: over HTTP/1.1 a
// browser opens six connections to a site, and each tab that listens takes one.
const list = document.getElementById("live");
let after = list?.dataset.after;
let source;

function listen() {
  source?.close();
  if (!list || document.hidden) return;
  source = new EventSource(`${list.dataset.events}?after=${after}`);
  source.onmessage = ({ data, lastEventId }) => {
    after = lastEventId;
    const { link, title, author } = JSON.parse(data);
    const anchor = document.createElement("a");
    anchor.href = link;
    anchor.textContent = title;
    const item = document.createElement("li");
    item.append("New: ", anchor, ` by ${author}`);
    list.prepend(item);
  };
}

document.addEventListener("visibilitychange", listen);
listen();
