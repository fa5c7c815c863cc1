// The slider over the moments of training.

function showMoment(index) {
  const frame = data.frames[index];
  document.getElementById("moment-title").textContent = `${frame.title}: loss ${frame.loss}`;
  document.querySelectorAll("#moment-classes tr").forEach((row) => {
    const percent = (100 * frame.probabilities[row.dataset.class]).toFixed(1);
    row.querySelector(".bar").style.width = `${percent}%`;
    row.querySelector(".number").textContent = `${percent} %`;
  });
  document.querySelectorAll("#moment-pictures figure").forEach((figure, place) => {
    const picture = frame.pictures[place];
    figure.querySelector("img").src = picture.uri;
    figure.querySelector("img").alt = picture.alt;
    figure.querySelector(".scale").replaceChildren(element("span", { className: "count", textContent: picture.count }), ...(picture.scale ? scaleBar(picture.scale) : []));
  });
}

const moment = document.getElementById("moment");
if (moment) moment.addEventListener("input", () => showMoment(+moment.value));
