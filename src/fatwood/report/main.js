const pictures = [timeline(), curves()];
let wide = document.documentElement.clientWidth;
addEventListener("resize", () => {
  if (document.documentElement.clientWidth === wide) return;
  wide = document.documentElement.clientWidth;
  pictures.forEach((picture) => picture.draw());
});
dark.addEventListener("change", () => pictures[0].paint());
document.documentElement.dataset.drawn = Math.round(performance.now());
