"""The vocabulary of the pocket model: which pictures it learns by name, and the words it learns them under.

One row a concept: the Unicode name of the emoji, then the words to caption it with (the first is the main one).
A row without words is captioned with its Unicode name.
"""

from __future__ import annotations

_CORE = """
red apple: red apple, apple
green apple: green apple
pear: pear, green pear
lemon: lemon, yellow lemon
banana: banana, yellow banana
watermelon: watermelon, slice of watermelon
grapes: grapes, purple grapes
strawberry: strawberry, red strawberry
cherries: cherries, red cherries
pineapple: pineapple
kiwi fruit: kiwi, kiwi fruit
avocado: avocado
tomato: tomato, red tomato
carrot: carrot, orange carrot
ear of corn: corn, ear of corn
broccoli: broccoli, green broccoli
hot pepper: chili pepper, hot pepper
mushroom: mushroom, red mushroom
bread: bread, loaf of bread
croissant: croissant
cheese wedge: cheese, yellow cheese
hamburger: hamburger, burger
french fries: french fries
pizza: pizza, slice of pizza
hot dog: hot dog
egg: egg
popcorn: popcorn
ice cream: ice cream, bowl of ice cream
soft ice cream: ice cream cone, soft ice cream
doughnut: donut, doughnut
cookie: cookie, chocolate cookie
birthday cake: birthday cake, cake with candles
cupcake: cupcake
lollipop: lollipop
hot beverage: cup of coffee, cup, coffee
teapot: teapot
dog face: dog face, dog
cat face: cat face, cat
tiger face: tiger face, tiger
lion: lion, lion face
unicorn: unicorn, unicorn face
cow face: cow face, cow
pig face: pig face, pig
rabbit face: rabbit face, rabbit
fox: fox, fox face
bear: bear, bear face
panda: panda, panda face
koala: koala, koala face
elephant: elephant
giraffe: giraffe
baby chick: baby chick, yellow chick
bird: bird, blue bird
penguin: penguin
owl: owl
frog: frog, green frog
turtle: turtle, green turtle
T-Rex: t-rex, dinosaur
fish: fish, blue fish
crab: crab, red crab
snail: snail
butterfly: butterfly, blue butterfly
honeybee: bee, honeybee
rose: rose, red rose
sunflower: sunflower, yellow flower
blossom: flower, blossom
tulip: tulip
deciduous tree: tree, green tree
palm tree: palm tree
cactus: cactus, green cactus
globe showing Americas: globe, earth
house: house
castle: castle
bus: bus
automobile: car, red car
bicycle: bicycle, bike
sailboat: sailboat, boat
airplane: airplane, plane
rocket: rocket
flying saucer: flying saucer, ufo
crescent moon: crescent moon
sun: sun
star: star, yellow star
cloud: cloud, white cloud
rainbow: rainbow
umbrella: umbrella
high voltage: lightning bolt, lightning
snowman without snow: snowman
fire: fire, flame
jack-o-lantern: jack-o-lantern, halloween pumpkin
Christmas tree: christmas tree
balloon: balloon, red balloon
wrapped gift: gift, present
trophy: trophy, golden trophy
soccer ball: soccer ball, football
basketball: basketball
game die: die, dice
teddy bear: teddy bear
sunglasses: sunglasses
crown: crown, golden crown
gem stone: gem, diamond
bell: bell, golden bell
guitar: guitar
camera: camera
candle: candle
light bulb: light bulb
envelope: envelope, letter
pencil: pencil
scissors: scissors
locked: lock, padlock
key: key
hammer: hammer
"""

_WIDE = """
peach: peach
eggplant: eggplant, aubergine
pretzel: pretzel
pancakes: pancakes
waffle: waffle
poultry leg: chicken leg, drumstick
sushi: sushi
pie: pie
wine glass: glass of red wine, wine glass
beer mug: beer mug, mug of beer
horse face: horse face, horse
mouse face: mouse face, mouse
camel: camel
duck: duck
flamingo: flamingo, pink flamingo
snake: snake
whale: whale, blue whale
tropical fish: tropical fish
shark: shark
octopus: octopus
bouquet: bouquet, bouquet of flowers
cherry blossom: pink flower, cherry blossom
evergreen tree: evergreen tree, pine tree
maple leaf: maple leaf
volcano: volcano
tractor: tractor
racing car: racing car
helicopter: helicopter
alarm clock: alarm clock, clock
full moon: full moon, moon
snowflake: snowflake
droplet: droplet, water drop
tennis: tennis ball, tennis
artist palette: palette, artist palette
glasses: glasses
t-shirt: t-shirt, shirt
backpack: backpack
ring: ring, diamond ring
headphone: headphones
trumpet: trumpet
drum: drum
mobile phone: mobile phone, phone
laptop: laptop, computer
books: books, stack of books
money bag: money bag
axe: axe
bomb: bomb
magnet: magnet
tangerine: orange, tangerine
mango: mango
coconut: coconut
potato: potato
garlic: garlic
onion: onion
bacon: bacon
sandwich: sandwich
taco: taco
shortcake: slice of cake, strawberry cake
chocolate bar: chocolate bar, chocolate
ice: ice cube, ice
candy: candy
tram car: tram
motor scooter: scooter, motor scooter
locomotive: steam locomotive, locomotive
monkey face: monkey face
poodle: poodle
black cat: black cat
zebra: zebra
polar bear: polar bear, white bear
hedgehog: hedgehog
sloth: sloth
chicken: chicken, chicken face
parrot: parrot
crocodile: crocodile
dragon face: dragon, dragon face
lobster: lobster
lady beetle: ladybug
spider web: spider web
hibiscus: hibiscus, red flower
seedling: seedling, green seedling
potted plant: potted plant, plant
four leaf clover: four leaf clover, clover
brick: brick, bricks
rock: rock, stone
wood: wood, logs
tent: tent
ambulance: ambulance
police car: police car
anchor: anchor
ringed planet: planet, planet with rings
hourglass done: hourglass
watch: watch
bowling: bowling ball
magic wand: magic wand
yarn: yarn, ball of yarn
running shoe: running shoe, shoe
bell pepper: bell pepper, green bell pepper
saxophone: saxophone
violin: violin
telescope: telescope
microscope: microscope
chair: chair
bubbles: bubbles, soap bubbles
bucket: bucket
shield: shield
television: television, tv
baseball: baseball
kite: kite
crystal ball: crystal ball
dolphin: dolphin
blowfish: pufferfish
spiral shell: shell, spiral shell
cocktail glass: cocktail glass, cocktail
bubble tea: bubble tea
glass of milk: glass of milk, milk
honey pot: honey pot, honey
cooking: fried egg, fried egg in a pan
top hat: top hat, hat
ship: ship
taxi: taxi
fire engine: fire engine, fire truck
monkey: monkey
dog: standing dog
cat: standing cat
wolf: wolf
raccoon: raccoon
leopard: leopard
deer: deer
goat: goat
llama: llama
kangaroo: kangaroo
squid: squid
spider: spider
bat: bat
eagle: eagle
swan: swan
peacock: peacock
rooster: rooster
dove: dove, white dove
lizard: lizard
jellyfish: jellyfish
feather: feather
blueberries: blueberries
melon: melon
cucumber: cucumber
green salad: salad, green salad
butter: butter
rice ball: rice ball
spaghetti: spaghetti
dumpling: dumpling
tumbler glass: glass, tumbler
spoon: spoon
kitchen knife: knife, kitchen knife
jar: jar
compass: compass
mountain: mountain
church: church
ferris wheel: ferris wheel
train: train
pickup truck: pickup truck
delivery truck: truck, delivery truck
motorcycle: motorcycle, motorbike
skateboard: skateboard
stop sign: stop sign
parachute: parachute
satellite: satellite
luggage: suitcase, luggage
stopwatch: stopwatch
thermometer: thermometer
glowing star: glowing star
tornado: tornado
fireworks: fireworks
sparkles: sparkles
volleyball: volleyball
boxing glove: boxing glove
bullseye: target, bullseye
puzzle piece: puzzle piece
jeans: jeans
scarf: scarf
gloves: gloves
dress: dress
graduation cap: graduation cap
lipstick: lipstick
microphone: microphone
radio: radio
telephone: telephone
battery: battery
keyboard: keyboard
flashlight: flashlight
green book: green book, book
blue book: blue book
orange book: orange book
scroll: scroll
package: package, cardboard box
paintbrush: paintbrush
briefcase: briefcase
paperclip: paperclip
wrench: wrench
screwdriver: screwdriver
gear: gear
ladder: ladder
pill: pill
door: door
bed: bed
broom: broom
soap: soap
toothbrush: toothbrush
coin: coin, gold coin
bow and arrow: bow, bow and arrow
military helmet: helmet, soldier's helmet
red heart: heart, red heart
world map: map, world map
treasure chest: chest, treasure chest
sword: sword
potion: potion, magic potion
staff: staff, wizard's staff
torch: torch, burning torch
"""


def concepts(wide: bool = False) -> dict[str, list[str]]:
    """Unicode emoji name -> the words it is captioned with, main one first; `wide` adds the second table."""
    return _rows(_CORE) | (_rows(_WIDE) if wide else {})


def _rows(table: str) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    for line in table.strip().splitlines():
        name, _, words = line.partition(":")
        rows[name.strip()] = [word.strip() for word in words.split(",")]
    return rows


def with_article(words: str) -> str:
    """ "apple" -> "an apple"; plurals and mass nouns stay bare."""
    first, last = words.split()[0], words.split()[-1]
    bare = {
        "bread",
        "bacon",
        "sushi",
        "popcorn",
        "corn",
        "garlic",
        "broccoli",
        "cheese",
        "milk",
        "coffee",
        "honey",
        "wood",
        "fire",
        "chocolate",
        "lightning",
        "tennis",
        "ice",
        "dice",
        "yarn",
        "butter",
        "smoke",
        "soap",
        "salad",
        "spaghetti",
    }
    if last in bare or (
        last.endswith("s")
        and last not in {"cactus", "octopus", "hibiscus", "bus", "hourglass", "glass", "compass", "dress"}
    ):
        return words
    vowel = (first[0] in "aeiou" or first == "hourglass") and not first.startswith(("uni", "ufo"))
    return f"{'an' if vowel else 'a'} {words}"
