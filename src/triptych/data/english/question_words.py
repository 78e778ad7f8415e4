"""The words by which captions are read and questions asked: nouns, colours, verbs, and what goes with what.

Chosen from the captions of Flickr8k's training photos. A line of `NOUNS` is a name and its forms, singular/plural: a regular
plural may be left out, ``snow/`` has none, ``/shorts`` is always plural.
"""

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

COLOURS = {
    **{name: name for name in ("black", "white", "brown", "red", "blue", "yellow", "green", "orange", "pink", "tan")},
    **{name: name for name in ("purple", "gray", "silver", "gold", "blond", "beige")},
    **{"grey": "gray", "blonde": "blond", "golden": "gold"},
}
"""Word -> its spelling in answers."""

ALIKE = (
    "black gray brown blue",
    "white gray silver beige tan blond",
    "brown tan gold beige blond orange red yellow",
    "red pink orange purple",
    "blue purple green gray",
    "yellow gold orange tan blond beige green",
)
"""Colours of which one person says this, another that."""

NOUNS = """
# human
man: man/men guy gentleman/gentlemen dude male fisherman/fishermen cowboy policeman/policemen groom fireman/firemen
woman: woman/women lady female bride
boy: boy
girl: girl
child: child/children kid
baby: baby toddler infant
person: person/people adult teenager teen human individual someone/ somebody/ everyone/ rider biker cyclist bicyclist \
motorcyclist surfer skier snowboarder skateboarder skater climber hiker swimmer runner racer player goalie athlete dancer \
wrestler performer driver worker officer kayaker wakeboarder rollerblader jogger musician singer student referee cheerleader \
pitcher batter catcher acrobat gymnast diver jumper clown waterskier fencer pedestrian spectator onlooker friend fan parent \
tourist passenger photographer owner member teammate guitarist soldier vendor artist hunter boater rower mountaineer \
backpacker camper customer footballer bicycler instructor trainer coach /couple /family /crowd /team \
/group /audience /police /band
# animal
dog: dog puppy doggy canine terrier retriever poodle greyhound collie labrador beagle doberman bulldog pitbull rottweiler husky \
dachshund chihuahua sheepdog spaniel dalmatian mutt shepherd sheltie
cat: cat kitten
horse: horse pony
bird: bird seagull pigeon duck goose/geese swan eagle parrot gull pelican owl
cow: cow calf/calves
bull: bull
sheep: sheep/sheep lamb
monkey: monkey
camel: camel
elephant: elephant
goat: goat
zebra: zebra
giraffe: giraffe
# place
beach: beach shore/ seashore
snow: snow/
water: water/
pool: pool
ocean: ocean sea
lake: lake
river: river
grass: grass/
field: field meadow
street: street road
sidewalk: sidewalk pavement/
park: park
sand: sand/
mountain: mountain mountainside
hill: hill hillside
forest: forest /woods
path: path trail
track: track racetrack
ice: ice/ rink
mud: mud/
dirt: dirt/
playground: playground
restaurant: restaurant
kitchen: kitchen
cliff: cliff
desert: desert
yard: yard backyard
lawn: lawn
court: court
room: room
puddle: puddle
pond: pond
stream: stream creek
city: city
store: store
garden: garden
dock: dock pier
bridge: bridge
fountain: fountain
stage: stage
# clothes
shirt: shirt t-shirt tshirt tanktop
jacket: jacket
coat: coat parka
hat: hat cap beanie
helmet: helmet
dress: dress
shorts: /shorts
pants: /pants /jeans /trousers
suit: suit tuxedo
swimsuit: swimsuit bikini
trunks: /trunks
glasses: /glasses
sunglasses: /sunglasses
goggles: /goggles
gloves: /gloves
boots: /boots
shoes: /shoes /sneakers
skirt: skirt
sweater: sweater
sweatshirt: sweatshirt hoodie
vest: vest
scarf: scarf/scarves
uniform: uniform
costume: costume
outfit: outfit
wetsuit: wetsuit
backpack: backpack
collar: collar
harness: harness
muzzle: muzzle
headphones: /headphones
mask: mask
# hair
hair: hair/
# ride
bike: bike bicycle
motorcycle: motorcycle motorbike dirtbike
scooter: scooter
skateboard: skateboard
snowboard: snowboard
surfboard: surfboard
car: car
truck: truck
bus: bus
wheelchair: wheelchair
train: train
sled: sled
unicycle: unicycle
tractor: tractor
atv: atv
wave: wave
boat: boat sailboat rowboat
canoe: canoe
kayak: kayak
raft: raft
rollercoaster: rollercoaster
carousel: carousel merry-go-round
# thing
ball: ball
frisbee: frisbee disc
stick: stick
toy: toy
rope: rope
tree: tree
bench: bench
chair: chair
couch: couch sofa
bed: bed
table: table
swing: swing
slide: slide
trampoline: trampoline
ramp: ramp
rock: rock boulder
wall: wall
fence: fence
railing: railing handrail rail
log: log
bar: bar
pole: pole
hurdle: hurdle
hoop: hoop
tunnel: tunnel
tube: tube innertube
tent: tent
building: building
house: house
sign: sign
flag: flag
umbrella: umbrella
guitar: guitar
drum: drum
violin: violin
flute: flute
accordion: accordion
microphone: microphone
camera: camera
phone: phone cellphone
book: book
newspaper: newspaper
bottle: bottle
cup: cup mug
cigarette: cigarette
balloon: balloon
bubbles: /bubbles
flower: flower
leaves: /leaves
bag: bag purse
basket: basket
bucket: bucket
blanket: blanket
bat: bat
racket: racket racquet
kite: kite
leash: leash
sprinkler: sprinkler
hose: hose
shovel: shovel
ladder: ladder
stairs: /stairs /steps
bone: bone
cake: cake
stroller: stroller
wagon: wagon
cart: cart
laptop: laptop
mirror: mirror
window: window
gun: gun
sword: sword
fish: fish/fish
snowball: snowball
snowman: snowman/snowmen
fire: fire/ campfire
waterfall: waterfall
floor: floor
carpet: carpet rug
tire: tire
# instrument
guitar: guitar
drum: drum
violin: violin
flute: flute
accordion: accordion
# sport
soccer: soccer/
football: football/
tennis: tennis/
baseball: baseball/
basketball: basketball/
volleyball: volleyball/
rugby: rugby/
cricket: cricket/
hockey: hockey/
softball: softball/
golf: golf/
"""

VERBS = """
running: run jog trot sprint gallop
racing: race
jumping: jump leap
walking: walk stroll
hiking: hike
standing: stand
sitting: sit
lying: lie lay
sleeping: sleep
swimming: swim
diving: dive
wading: wade
climbing: climb scale
riding: ride
biking: bike bicycle cycle
skateboarding: skateboard
snowboarding: snowboard
surfing: surf
skiing: ski
skating: skate rollerskate
rollerblading: rollerblade
kayaking: kayak
wakeboarding: wakeboard
sliding: slide
swinging: swing
dancing: dance
singing: sing
eating: eat
drinking: drink
smoking: smoke
reading: read
writing: write
fishing: fish
fighting: fight
wrestling: wrestle
hugging: hug embrace
kissing: kiss
laughing: laugh
crying: cry
smiling: smile grin
talking: talk speak chat
posing: pose
playing: play
digging: dig
kicking: kick
throwing: throw toss
catching: catch
hitting: hit
pushing: push
pulling: pull
chasing: chase
carrying: carry
holding: hold
looking: look
watching: watch
waiting: wait
leaning: lean
hanging: hang
kneeling: kneel
crouching: crouch squat
shaking: shake
splashing: splash
rolling: roll
chewing: chew
biting: bite
licking: lick
barking: bark
driving: drive
paddling: paddle row
flying: fly
falling: fall
balancing: balance
bouncing: bounce
crawling: crawl
resting: rest relax
shopping: shop
waving: wave
pointing: point
wearing: wear
having: have
using: use
making: make
taking: take
doing: do
performing: perform
getting: get
going: go
crossing: cross
"""
"""What an answer says: the verbs that mean it."""

PURSUITS = """
    running racing jumping walking hiking standing sitting lying sleeping swimming diving wading climbing biking
    skateboarding snowboarding surfing skiing skating rollerblading kayaking wakeboarding sliding swinging dancing singing
    eating drinking smoking reading writing fishing fighting wrestling hugging kissing laughing crying smiling talking posing
    playing digging kneeling crouching barking paddling crawling shopping waving rolling
"""
"""Verbs that answer "What is the man doing?"."""

ROLES = {
    "surfer": "surfing",
    "skier": "skiing",
    "snowboarder": "snowboarding",
    "skateboarder": "skateboarding",
    "climber": "climbing",
    "swimmer": "swimming",
    "skater": "skating",
    "hiker": "hiking",
    "kayaker": "kayaking",
    "wakeboarder": "wakeboarding",
    "rollerblader": "rollerblading",
    "biker": "biking",
    "cyclist": "biking",
    "bicyclist": "biking",
    "dancer": "dancing",
}
"""Who -> what one of that name is seen to do."""

RULED_OUT = {
    "running": "standing sitting lying sleeping swimming walking climbing skateboarding surfing skiing snowboarding",
    "jumping": "standing sitting lying sleeping walking swimming",
    "walking": "sitting lying sleeping swimming jumping climbing skateboarding surfing skiing snowboarding biking",
    "standing": "sitting lying sleeping running jumping swimming climbing walking",
    "sitting": "standing running jumping walking climbing skateboarding surfing skiing snowboarding swimming dancing",
    "lying": "running jumping walking standing climbing sitting skateboarding surfing skiing snowboarding",
    "swimming": "sitting running walking standing climbing jumping skateboarding skiing snowboarding",
    "sleeping": "running jumping walking standing climbing swimming playing skateboarding surfing skiing snowboarding",
    "climbing": "running walking sitting swimming lying skateboarding surfing skiing snowboarding",
    "dancing": "sitting lying sleeping swimming climbing skateboarding surfing skiing snowboarding",
    "surfing": "sitting walking running standing climbing skateboarding skiing snowboarding",
    "skateboarding": "sitting walking running climbing surfing skiing snowboarding swimming",
    "snowboarding": "skiing sitting walking running climbing surfing skateboarding swimming",
    "skiing": "snowboarding sitting walking running climbing surfing skateboarding swimming",
}
"""Asked -> what one does who certainly does not do it."""

ASKED_ABOUT = """
riding: riding
holding: holding
carrying: carrying
wearing: wearing
throwing: throwing
catching: catching
kicking: kicking
chasing: chasing
pulling: pulling
pushing: pushing
eating: eating
reading: reading
playing: playing
playing with: playing with
playing in: playing in
climbing: climbing, climbing up
jumping over: jumping over
jumping into: jumping into
jumping on: jumping on
jumping off: jumping off
running through: running through, running in
running on: running on, running along, running across, running down
walking on: walking on, walking along, walking across, walking down
walking through: walking through, walking in
sitting on: sitting on
sitting in: sitting in
standing on: standing on
standing in: standing in
lying on: lying on
lying in: lying in
swimming in: swimming in, swimming through
sliding down: sliding down
leaning on: leaning on, leaning against
hanging from: hanging from
swinging on: swinging on
digging in: digging in
talking on: talking on
drinking from: drinking from
chewing on: chewing on, chewing
standing in front of: standing in_front_of
standing next to: standing next_to, standing by, standing beside
sitting next to: sitting next_to, sitting by, sitting beside
sitting at: sitting at
jumping through: jumping through
looking at: looking at
"""
"""What is asked ("What is the dog running through?"): the phrases in captions whose object answers it."""

ANSWERED_BY = {"riding": ("ride", "animal"), "wearing": ("clothes",), "playing": ("sport", "instrument")}
"""The kinds of noun that answer what is asked, where not all that are neither people nor clothes do."""

SALIENT = """
dog: dog- pup- animal- hound- pet breed boxer weim- setter schnauzer mastiff pug corgi dane pointer pomeranian malamute lab labs \
whippet fetch- tail leash collar muzzle- terr- dalm- rotw- something creature-
cat: animal- feline pet kit- something creature-
horse: animal- jockey- polo rodeo cowboy- equestrian- horseback bronco mule donkey carriage- bull- stallion something
bird: animal- wing- beak- flying flock- feather- crane- heron- stork- hawk- rooster- chicken- penguin- something
cow: animal- cattle bull- ox steer- farm- herd something rodeo
man: +person he father- dad husband son brother- santa pirate-
woman: +person she mother- mom grandmother- wife daughter- sister- girls
boy: +person +child +baby +man he youth- son brother- youngster-
girl: +person +child +baby +woman she youth- daughter- sister- youngster-
baby: +person +child +boy +girl newborn- diaper-
ball: ball- toy- soccer football- tennis basketball- baseball- volleyball- rugby softball- golf cricket- play- game- sport- catch- \
throw- kick- hit- bat- pitch- toss- something object- goal- match- disc- juggl- cue bowl- pool hockey marbles- croquet- polo \
fetch- bounc- court lacrosse dribbl- dunk- racket- racquet-
frisbee: frisb- disc- disk- toy- catch- something object- throw- play- game- fetch-
stick: branch- log- object- something toy- wood twig- pole- bat hockey fetch- tree- driftwood
bike: bicycl- bik- cycl- bmx motor- dirt- ride- riding tricycle- unicycle- wheel- scooter- pedal- race- racing- moped- vehicle- \
dirtbike- stunt- trick-
motorcycle: motor- bik- cycl- dirt- moped- scooter- vehicle- rid- rac- atv- quad- four-wheel- bmx bicycl- police-
skateboard: skate- skating board- trick- stunt- ramp- rail- grind- half-pipe- jump-
snowboard: snow- board- ski- slope- sled-
surfboard: surf- board- wave- paddl- ocean wind-
car: car- cars vehicle- automobile- traffic truck- van- jeep- driv- rac- taxi- suv- street- road- parking park- city cab- train- suv \
bus buses race- highway
boat: boat- canoe- kayak- raft- ship- sail- row- vessel- paddl- dock- pier- harbor- gondola- water lake ocean sea river marina
snow: snow- ski- sled- winter- ice icy frozen cold white slope- mountain- iceberg-
beach: beach- sand- shore- ocean- sea coast- surf- wave- water lake river dune- boardwalk
pool: pool- swim- water- splash- div- underwater- lake- tub- bath- river- ocean-
guitar: guitar- music- instrument- band- sing- perform- play- bass- banjo- ukulele- concert- rock strum-
swing: swing- playground- tire- rope- hang- park
slide: slid- playground- tube- park- play waterslide-
trampoline: trampolin- bounc- jump- playground- inflat-
bench: bench- seat- sit- park- picnic chair- couch- rest- waiting bleacher-
umbrella: umbrella- parasol- rain- shade- canopy- beach-
microphone: microphone- mic- sing- speak- speech- perform- karaoke music- concert- band- talk- stage-
phone: phone- cell- call- talk- mobile-
tent: tent- camp- canopy- shelter- sheet- market-
bubbles: bubbl- soap- water underwater foam
kite: kite- paraglid- parachut- sky string- parasail-
sled: sled- snow- toboggan- slid- tub- sleigh-
kayak: kayak- canoe- boat- raft- paddl- row- water river rapid- lake ocean
train: train- rail- subway- station- track- tram- platform-
book: book- read- magazine- paper- study- write- newspaper- store-
fountain: fountain- water- spray- spout- splash- squirt- park hydrant
bridge: bridge- overpass- dock- pier- walkway- river boardwalk- city water
fire: fire- flam- burn- camp- smoke- torch- candle- spark- grill- bonfire-
bed: bed- mattress- sleep- pillow- blanket- crib- couch- lay- lie- lying sofa-
couch: couch- sofa- sit- chair- seat- furniture bed- lay- lie- lying bench- loveseat
wheelchair: wheelchair- chair- wheel- disabled handicap-
tunnel: tunnel- tube- agility obstacle- pipe- playground-
cigarette: cigar- smok- pipe-
balloon: balloon- party birthday- parade-
flag: flag- parade- banner- streamer- sport- stadium
bus: bus- vehicle- traffic street- city
sheep: sheep- animal- lamb- herd- farm- goat-
elephant: elephant- animal- statue- circus zoo
camel: camel- animal- desert
canoe: canoe- kayak- boat- raft- paddl- row- water river lake
raft: raft- boat- tube- inflat- float- kayak- canoe- rapid- river water pool
racket: racket- racquet- tennis badminton squash court- pingpong
"""
"""What captions name wherever it is seen, so that their silence means it is not there; and what beside its own forms hints that
it may be there: words, beginnings of words (-), all forms of another noun (+)."""

ADJECTIVES = """
young little small large big old older elderly tall short long wet dry snowy grassy wooden striped dark light bright colorful
colored asian african american dirty muddy rocky sandy busy crowded empty huge fluffy furry shaggy smaller larger bigger
younger shirtless bald bearded lone single plaid multicolored multi-colored deep shallow open metal plastic brick stone
concrete cement inflatable outdoor indoor happy cute pretty beautiful skinny fat heavy chinese japanese indian barefoot leather
denim matching steep paved muzzled spotted tri-colored professional blurry calm clear cloudy leafy medium sized
"""

DETERMINERS = "a an the his her its their this that these those some several many few"

PREPOSITIONS = """
in on at with by near of from to into onto through over under down up along across around behind beside off against past toward
towards between above below inside outside beneath among atop underneath alongside during upon after next_to in_front_of on_top_of
out_of at_the_edge_of
"""

ADVERBS = """
together outdoors indoors away nearby back forward there here very also just being while as high low upside upside-down airborne
in_the_air each_other about out it him them whilst
"""

PHRASES = {
    r"t[ -]shirt": "t-shirt",
    r"tank tops?": "tanktop",
    r"bathing suit": "swimsuit",
    r"bathing suits": "swimsuits",
    r"swim(?:ming)? (?=trunks|suit)": "",
    r"(?:swimming|wading|kiddie|above ground) pool": "pool",
    r"dirt ?bike": "dirtbike",
    r"dirt ?bikes": "dirtbikes",
    r"(?:mountain|bmx) bike": "bike",
    r"motor bike": "motorbike",
    r"hot tub": "hottub",
    r"(?:amusement |theme )?(?:park|carnival|fair) rides?": "amusement-ride",
    r"(?:stuffed|toy|model|fake) \w+": "toy",
    r"teddy bears?": "toy",
    r"(?:subway|train|trolley|railroad) car": "train",
    r"(?:cell|mobile) phone": "phone",
    r"swing set": "swing",
    r"police officer": "policeman",
    r"body of water": "water",
    r"snow[- ]covered": "snowy",
    r"(?:pile|patch|stretch|bed|expanse) of (?=snow|grass|leaves|sand|dirt|mud|water|ice)": "",
    r"(?:group|crowd|bunch|pair|couple|lot|line|row|pile|team|pack|number|set|trio|herd|flock|family|gang)s? of": "several",
    r"lots of": "several",
    r"(?:a|the|his|her) (?:football|basketball|baseball|volleyball|softball|soccer ball|tennis ball)(?! \w+(?:er|ers|game|match|"
    r"team|field|court|uniform|jersey|bat|hoop|glove|helmet|cap|goal|stadium|net|racket|racquet|outfit|practice)\b)": "a ball",
    r"on (?:a |its |his |her |their )?leash(?:es)?": "in_the_air",
    r"in front of": "in_front_of",
    r"on top of": "on_top_of",
    r"next to": "next_to",
    r"out of": "out_of",
    r"off of": "off",
    r"(?:in|inside) of": "in",
    r"in the (?:middle|midst|center) of": "in",
    r"(?:at|on|along|by|near) the (?:\w+ )?(?:edge|side|end|bottom|back|foot|base|corner) of": "at_the_edge_of",
    r"(?:in|into|through) (?:the )?(?:mid-?|mid )?air|midair": "in_the_air",
    r"in (?:the |a )?(?:background|distance|foreground|front)": "in_the_air",
    r"(?:each|one an)other|each other|one another": "each_other",
    r"(?:with|in|from) (?:his|her|its|the|their|a|it's|it 's) mouths?": "in_mouth",
}
"""Turned into one word before a caption is read."""
