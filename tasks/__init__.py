"""The tasksets that come with agentalign. Content, loaded by path: `agentalign.environments.taskset.load_taskset`."""
