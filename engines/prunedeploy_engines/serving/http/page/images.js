// The ways in which a person hands over an image: choosing, dropping and pasting a file.

// look(file) is called with each, say(text) where there was none.
export function takeImages(look, say) {
  const [choose, field, drop] = ["choose", "file", "drop"].map((id) => document.getElementById(id));

  function taken(files) {
    const file = [...files].find((one) => one.type.startsWith("image/")) ?? files[0];
    if (file) look(file);
    return Boolean(file);
  }

  choose.addEventListener("click", () => field.click());
  field.addEventListener("change", () => {
    taken(field.files);
    field.value = ""; // so that the same file can be chosen again
  });
  document.addEventListener("paste", (event) => {
    if (taken(event.clipboardData.files)) event.preventDefault();
  });
  // Anywhere on the page: a file that misses the frame would otherwise be opened in the page's place.
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget ?? drop.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (!taken(event.dataTransfer.files)) say("That was not a file: drop an image file.");
  });
}
