"""Mechanical requests: the right calls lead to the answer, and nothing has to be judged."""

from .drafts import Draft, among_others, make, other_statuses, owned, say
from .world import DAYS, GIFT_NOTES, World


def order_status(world: World, _branch: str) -> Draft:
    status = world.rng.choice(("processing", "shipped", "delivered"))
    order = among_others(world, status, note=world.rng.choice(GIFT_NOTES) if world.rng.random() < 0.4 else "")
    prompt = say(
        world,
        "What is the status of order {id}?",
        "Can you tell me the status of my order {id}?",
        "Hi, what about order {id}? Which status does it have?",
        "Status of {id} please.",
        id=order["order_id"],
    )
    return make(prompt, 1, [status], absent=other_statuses(status), request={"order": order["order_id"]})


def tracking(world: World, _branch: str) -> Draft:
    order = among_others(world, "shipped")
    prompt = say(
        world,
        "When will order {id} arrive?",
        "On which day does my order {id} come?",
        "Hello, when do I get order {id}?",
        "Please track order {id}.",
        id=order["order_id"],
    )
    others = [day for day in DAYS if day != order["arrives"]]
    return make(prompt, 1, [order["arrives"]], absent=others, request={"order": order["order_id"]})


def order_count(world: World, _branch: str) -> Draft:
    world.some(1, 6)
    prompt = say(
        world,
        "How many orders do I have? My email is {email}.",
        "I am {email}. How many orders did I place?",
        "Please count my orders. My email is {email}.",
    )
    count = len(owned(world))
    # A list of numbers is no answer.
    return make(prompt, 2, [str(count)], absent=[str(number) for number in range(1, 10) if number != count], request={})


def total_spent(world: World, _branch: str) -> Draft:
    world.some(1, 4)
    prompt = say(
        world,
        "How much did I spend in total? My email is {email}.",
        "I am {email}. What is the total of all my orders?",
        "What did I spend with you so far? My email is {email}.",
    )
    return make(prompt, 2, [str(sum(int(order["total"]) for order in owned(world)))], request={})


def latest_order(world: World, _branch: str) -> Draft:
    world.some(2, 4)
    prompt = say(
        world,
        "Which order is my latest? My email is {email}.",
        "I am {email}. What did I order last?",
        "What is my newest order? My email is {email}.",
    )
    *older, latest = owned(world)
    return make(prompt, 2, [latest["order_id"], latest["item"]], absent=[str(order["order_id"]) for order in older], request={})


def address_on_file(world: World, _branch: str) -> Draft:
    world.some(1, 2)
    prompt = say(
        world,
        "Which address do you have for me? My email is {email}.",
        "I am {email}. What is my address in your files?",
        "Please tell me my address. My email is {email}.",
    )
    return make(prompt, 1, [world.owner["address"]], request={})


def amount_paid(world: World, _branch: str) -> Draft:
    order = among_others(world, "")
    prompt = say(
        world,
        "How much did I pay for order {id}?",
        "What did order {id} cost me?",
        "Hello, which amount did I pay for {id}?",
        id=order["order_id"],
    )
    return make(prompt, 1, [str(order["total"])], request={"order": order["order_id"]})


def latest_tracking(world: World, _branch: str) -> Draft:
    world.some(1, 2)
    order = world.order("shipped")
    prompt = say(
        world,
        "When does my latest order arrive? My email is {email}.",
        "I am {email}. When will I get my newest order?",
        "Please track my last order. My email is {email}.",
    )
    return make(prompt, 3, [order["order_id"], order["arrives"]], absent=[day for day in DAYS if day != order["arrives"]], request={})
