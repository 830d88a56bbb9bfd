// The login of a team's server. The password goes out once, in the body of one request to this origin, and is kept nowhere.

const form = document.getElementById("login");
const fault = document.getElementById("fault");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  button.disabled = true;
  fault.textContent = "";
  try {
    const said = { name: form.elements.name.value.trim(), password: form.elements.password.value };
    const response = await fetch("/api/login", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(said) });
    if (response.ok) {
      location.replace("/" + location.hash);
      return;
    }
    const answer = await response.json().catch(() => null);
    fault.textContent = typeof answer?.detail === "string" ? answer.detail : `The server answered ${response.status}.`;
  } catch {
    fault.textContent = "The server does not answer.";
  }
  form.elements.password.value = "";
  button.disabled = false;
  form.elements.password.focus();
});
