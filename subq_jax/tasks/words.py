"""Word lists: what keys are made of, as in RULER an adjective, a hyphen and a noun, and what sentences are filled with.

Sentences take theirs from short lists, so that the same words stand in many places: what is asked is then told by where
a word stands, not by whether it stands there at all.
"""


def words(text: str, separator: str | None = None) -> tuple[str, ...]:
    """A list written as one text."""
    return tuple(text.split(separator))


_ADJECTIVES = """
able abrupt absent absurd abundant academic acid active actual acute adept adjacent adorable adult advanced aerial agile
airy alert alien alive aloof alpine amazed amber ample amused ancient angry animated annual antique anxious apt aquatic
arctic arid aromatic artful ashen astute atomic austere authentic autumn avid aware awkward azure bald balmy bare barren
bashful basic beaming beige beloved bent better big bitter bizarre black bland blank blazing bleak blessed blind
blissful blithe blond blue blunt blurry blushing bodily bogus bold bonny boring bossy bouncy boundless bountiful brainy
brash brass brave brazen breezy brief bright brilliant brisk brittle broad broken bronze brown bruised bubbly bulky
bumpy buoyant burly busy buttery calm candid canny capable careful careless caring casual cautious celestial central
ceramic certain charming cheap cheeky cheerful cheery chemical chief chilly chirpy chubby chunky circular civic civil
classic clean clear clever clinical cloudy clumsy coarse coastal cold colossal comfy comic common compact complete
complex composed concerned concrete confident content cool copper cordial corny cosmic costly courtly cozy crafty crazy
creamy creative crimson crisp critical crooked crude cruel crumbly crunchy crystal cuddly cultural curious curly current
curved cute cyan daily dainty damp dandy dapper daring dark dashing dazzling dear decent decisive deep defiant deft
delicate delicious delightful dense desert detailed devoted devout digital diligent dim direct dirty discreet distant
distinct diverse divine dizzy docile domestic dopey dormant dorsal dotted double drab dramatic dreamy dreary droll
drowsy dry dual dull durable dusty dutiful dynamic eager early earnest earthy eastern easy eccentric ecstatic edible
educated eerie effective efficient elaborate elastic elated elder electric elegant eloquent elusive eminent empty
enchanted endless energetic enormous entire epic equal essential eternal ethical even evergreen evident exact excited
exotic expert explicit exquisite extinct extra fabulous factual faded faint fair faithful familiar famous fancy far fast
fearless feathered federal feisty fertile festive feudal fickle fierce fiery final fine firm fiscal fit fixed flaky
flashy flat flawless fleet flexible flimsy floral fluent fluffy fluid flying foamy focal foggy fond foolish foreign
formal former fortunate fragile fragrant frail frank frantic free frequent fresh friendly frigid frilly frosty frozen
frugal fruity full fumbling functional funny furry fussy future fuzzy gallant gaseous gaudy general generous genial
gentle genuine ghostly giant giddy gifted gigantic gilded giving glad glassy gleaming glib global gloomy glorious glossy
glowing golden good gorgeous graceful gracious gradual grand granular grateful grave gray great greedy green gregarious
grim gritty gross grounded growing gruff grumpy guarded gusty hairy half handmade handsome handy happy hardy harmless
harsh hasty haunted hazel hazy healthy hearty heated heavenly heavy hefty helpful heroic hesitant hidden high hilarious
hoarse hollow holy homely honest hopeful horrid hot huge humble humid humming hungry hurried husky hybrid icy ideal idle
ignorant illegal imaginary immense impartial imperial impish important impure indigo indoor industrial inert infinite
inland inner innocent insecure intact intense internal intrepid inventive invisible irate iron ironic itchy ivory jade
jagged jaunty jazzy jealous jolly jovial joyful jubilant judicious juicy jumbo jumpy junior just keen kind kindred
knotty knowing known labored lacy languid large lasting late lavish lawful lazy leading leafy lean learned leather left
legal legible lemon lenient level liberal light likable lilac limber limited limp linear liquid literary little lively
living loaded local lofty logical lonely long loose lost loud lovely loving low loyal lucid lucky luminous lumpy lunar
lush luxurious lyrical mad magenta magical magnetic majestic major mammoth manual marble marine marked maroon married
marvelous massive mature meager mealy mean measly meaty medical mediocre medium meek mellow melodic memorable mental
merciful mere merry messy metallic mighty mild milky mindful mini minor minty misty mobile mocking modern modest moist
molten moody moral mossy motionless mountain muddy muffled mundane murky musical mute mutual mysterious mythical naive
narrow nasal nasty native natural naughty nautical naval neat nebulous needy nervous neutral new next nifty nimble noble
nocturnal noisy nomadic normal northern nosy notable novel numb nutty obedient oblong obscure obvious oceanic odd
official oily old olive open optical opulent orange orderly ordinary organic ornate orthodox outer outgoing oval overt
pale paltry parallel partial passive past pastel patient patriotic peaceful pearly peculiar peppery perfect perky pesky
petite petty phony piercing pink placid plain plastic playful pleasant pleased pliable plucky plump plush poetic pointed
polar polished polite political poor popular portly posh positive possible potent powerful practical precious precise
premium present prestigious pretty previous pricey prickly primal prime pristine private prize probable productive
profound prompt proper proud prudent public puffy pumped punctual puny pure purple pushy puzzled quaint qualified
quarterly queasy quick quiet quirky quixotic radiant ragged rainy random rapid rare rash raspy ratty raw ready real
rebel recent reckless red reflective regal regular reliable relieved remarkable remote repentant restful rich right
rigid ringed ripe roasted robust rocky romantic roomy rosy rotten rough round rowdy royal rubbery ruddy rude rugged
rural rustic ruthless sable sacred safe salty same sandy sane sarcastic sassy satin savory scaly scarce scared scarlet
scary scented scholarly scornful scrawny second secret secure selective selfish senior sensible separate serene serious
severe shabby shadowy shady shaggy shallow sharp shimmering shiny short showy shrewd shrill shy sick silent silky silly
silver similar simple sincere single sinister skeletal skilled skinny sleek sleepy slender slim slippery slow slushy
small smart smiling smoggy smooth smug snappy sneaky snowy snug soapy sociable social soft soggy solar solemn solid
somber sonic sore soulful soupy sour southern spare sparkling sparse special speedy spherical spicy spiffy spiky
spirited spiritual splendid spotless spotted spry square squeaky stable stained stale standard stark starry static
steady steel steep sticky stiff still stingy stoic stormy stout straight strange strict striped strong studious stunning
sturdy stylish suave subtle suburban sudden sugary sulky sunny super superb supple sure surly swanky sweet swift
symbolic tacky tactful talented tall tame tan tangible tangy tart tasty tattered taupe teal tender tense tepid terrible
terse thankful thick thin third thirsty thorny thorough thoughtful thrifty tidal tidy tight timely timid tinted tiny
tired topical torn total tough toxic tragic tranquil tricky trim tropical true trusty turbulent twin typical ugly
ultimate uncanny undead uneven unique united unlit unruly unusual upbeat upper upright urban urgent useful usual utopian
vacant vague vain valid valuable vast velvet venerable verbal verdant versed viable vibrant vicious victorious vigilant
vigorous vintage violet viral virtual visible vital vivid vocal volatile wacky waggish wanted warm wary watchful watery
wavy waxy weak wealthy weary wee weekly weighty weird western wet whimsical whispering white whole wicked wide wiggly
wild willing wily windy winged wintry wiry wise wistful witty woeful wonderful wooden woolen wordy worldly worn worthy
wry yawning yearly yellow yielding young youthful yummy zany zealous zesty zigzag
"""

_NOUNS = """
abacus abbey accordion account acorn acre actor adapter admiral adobe adult adventure advice aerosol agency airbag
airline airport aisle alarm album alcove alder algebra alley alligator almanac almond alphabet altar amber ambulance
amulet anchor anchovy android angle animal ankle ant antelope antenna anthem antler anvil apartment ape apple apricot
apron aquarium arcade arch archer archive arena armadillo armchair armor army arrow art ash asparagus aspen asteroid
astronaut athlete atlas atom attic auction audience aunt author autumn avalanche avenue avocado award axe axle baboon
baby backpack bacon badge badger bagel bagpipe bakery balcony ball ballad ballet balloon bamboo banana band bandana
bandit banjo bank banker banner banquet barber barge bark barley barn barometer baron barrel basement basil basin basket
bassoon bat bath battery bay bayou bazaar beach beacon bead beagle beaker beam bean bear beard beast beaver bed bee
beech beer beet beetle bell belt bench berry bicycle bill birch bird biscuit bishop bison blade blanket blazer blender
blimp blizzard block blossom blouse bluebird board boat bobcat body bolt bonfire bonnet book boot border bottle boulder
boulevard bouquet bow bowl box boxer bracelet braid branch bread breakfast breeze brick bridge briefcase broccoli bronco
brook broom brother brush bubble bucket buckle budget buffalo buffet bugle builder bulb bulldog bullet bumper bun
bungalow bunker bureau bus bush butler butter butterfly button cabbage cabin cabinet cable cactus cafe cage cake
calculator calendar calf camel camera camp canal canary candle candy cane cannon canoe canopy canvas canyon cap cape
captain car caramel caravan carbon card cardinal cargo caribou carnival carp carpenter carpet carriage carrot cart
cartoon cascade case cashew casino cask castle cat catalog catfish cathedral cattle cave cavern cedar ceiling celery
cell cello cement census center cereal chain chair chalet chalk chameleon champion channel chapel chapter charcoal
chariot chart chasm cheese cheetah chef cherry chess chest chestnut chick chicken chief child chimney chin chisel
chocolate choir chord chorus church cicada cider cinema cinnamon circle circus citadel citizen city clam clarinet
classroom claw clay clerk cliff clinic cloak clock closet cloth cloud clover clown club coach coal coast coat cobalt
cobra cobweb cocoa coconut cod coffee coin collar college colony column comb comet comma compass computer concert condor
cone consul cookie copper coral cord cork corn corner corridor costume cottage cotton couch cougar country county court
cousin cow coyote crab cradle crane crater crayon cream creek crew crib cricket crocodile crocus crop crow crowd crown
cruise crumb crust crystal cub cube cucumber cup cupboard curtain cushion custard cyclone cymbal cypress dagger dairy
daisy dam dancer dandelion date daughter dawn deck deer delta den dentist depot desert desk dessert dew diagram dial
diamond diary dice diner dingo dinner dinosaur diploma dish ditch diver dock doctor dog doll dolphin dome donkey donut
door dove dragon dragonfly drain drama drawer dress drift drill drum duck duckling duke dune dungeon dusk dust dwarf
eagle ear earring earth easel east echo eclipse editor eel egg elbow elder elephant elevator elf elk elm ember emblem
emerald emperor empire engine engineer envelope epoch ermine errand estate estuary evening exhibit eye fable fabric face
factory fairy falcon family farm farmer faucet fawn feast feather fence fern ferret ferry festival fiddle field fig
finch finger fire fireplace fish fisherman fjord flag flame flamingo flannel flask fleece flock flood floor flour flower
flute fly foal fog folder foot forest forge fork fort fossil foundry fountain fox frame freckle freezer freight frigate
frog frost fruit fudge funnel furnace fuse galaxy gallery galley gallon game garage garden garlic garment garnet gate
gazebo gazelle gear gecko gem general genie geyser ghost giant gibbon ginger giraffe glacier glade glass glider globe
glove glue gnat gnome goat goblet goblin goggles gold goldfish golf gondola goose gopher gorge gorilla gourd gown grain
granary granite grape grass gravel gravy grid griffin grill grocer grotto grove guard guitar gulf gull gust gymnast
habit hail hairpin halibut hall hallway halo ham hamlet hammer hammock hamster hand handle hangar harbor hare harness
harp harvest hat hatchet haven hawk hay hazel headband heart hearth heater hedge hedgehog heel heir helicopter helmet
hemlock hen herald herb hermit hero heron herring highway hill hinge hippo history hive hockey holiday hollow honey hood
hoof hook horizon horn hornet horse hose hospital hostel hotel hound hour house hull hummingbird hunter hurdle hurricane
husky hut hyena ice iceberg icicle icon idol iguana impala inch index infant ink inlet inn insect inventor iris iron
island ivory ivy jackal jacket jackpot jaguar jam jar jasmine javelin jaw jeans jeep jelly jellyfish jester jet jewel
jigsaw jockey joke journal journey judge jug juggler juice jungle juniper jury kangaroo kayak kelp kennel kernel kettle
key keyboard kidney kiln king kingdom kiosk kitchen kite kitten kiwi knee knight knob knot koala label lace ladder ladle
lady ladybug lagoon lake lamb lamp lance landlord lane lantern lark laser lasso lathe laundry lava lavender lawn lawyer
leaf leather ledge leech leek legend lemon lemonade lemur lens lentil leopard letter lettuce lever library lichen lid
lighthouse lilac lily lime limestone linen lion lip liquid list lizard llama loaf lobby lobster lock locket locust lodge
loft log loom lorry lotus lounge lumber lunch lute lynx lyric macaroni machine magazine magician magma magnet magnolia
magpie maid mailbox mallard mallet mammoth mango manor mansion mantle map maple marathon marble march margin marigold
marina market marsh marten mask mason mast mat match mattress maze meadow meal medal medicine melody melon memo menu
mercury mermaid mesa message metal meteor meter mews microscope midnight milk mill mine miner mineral mink mint minute
mirror missile mist mitten moat model mole monarch monk monkey monsoon month monument moon moose moped mosaic mosque
mosquito moss moth motor mound mountain mouse mouth mud muffin mug mule mural muscle museum mushroom music musket mussel
mustard myth nail napkin narwhal nebula neck necklace nectar needle neighbor nest net nettle newt nickel night
nightingale noodle north nose notebook novel nugget number nurse nursery nut nutmeg nylon oak oar oasis oat oboe ocean
octave octopus office officer oil olive omelet onion onyx opal opera orange orbit orchard orchestra orchid oregano organ
osprey ostrich otter oven owl ox oxygen oyster pacific paddle page pagoda pail paint pajamas palace palm pamphlet pan
pancake panda panel panther papaya paper parade parcel park parrot parsley parsnip party passport pasta pastry path
patio pavement paw pawn pea peach peacock peak peanut pear pearl pebble pecan pedal pelican pen pencil pendant penguin
penny pepper perch perfume petal petunia pheasant phone photo piano pickle picnic picture pie pier pig pigeon pike
pillar pillow pilot pin pine pineapple pioneer pipe pirate pistachio pitcher pizza plain planet plank plant plate
plateau platypus plaza plow plum plumber plume pocket poem poet polish pollen pond pony poodle pool popcorn poplar poppy
porch porcupine porridge port portrait postcard poster pot potato potter pouch powder prairie prawn prince princess
printer prism prize professor prune puddle puffin pulley pulp pump pumpkin punch pupil puppet puppy purse puzzle pyramid
python quail quarry quart quartz queen quiche quill quilt quiver rabbit raccoon race radar radio radish raft rail rain
rainbow raisin rake ram ramp ranch ranger rapid raspberry rat rattle raven ravine razor recipe record reed reef referee
reindeer relic remedy resin resort rhino rhubarb rhyme ribbon rice riddle rider ridge rifle ring river road robin robot
rock rocket rodeo roof room rooster root rope rose rowboat rubber ruby rudder rug ruler rumor runner rye sack saddle
safari saffron sage sail sailor salad salmon salon salt sand sandal sandwich sapphire sardine satchel satellite sauce
saucer sausage savanna saw saxophone scale scallop scarecrow scarf scepter school science scissors scooter scorpion
scout screen screw scroll sculptor sea seagull seahorse seal season seat seaweed secretary seed senator server sesame
shack shadow shark shawl shed sheep shelf shell shelter shepherd sheriff shield ship shirt shoe shop shore shoulder
shovel shower shrimp shrub shuttle sidewalk sieve silk silo singer sink siren sister skate sketch ski skirt skull skunk
sky sled sleeve sleigh slide slipper sloth smoke snail snake sneaker snorkel snow soap soccer sock sofa soil soldier
sonnet soup south spade spaniel sparrow spear sphere sphinx spice spider spinach spiral spire sponge spoon spring sprout
spruce spy square squash squid squirrel stable stadium staircase stallion stamp star starfish station statue steam
steeple stem stencil steward stick stone stool stork storm story stove strap straw stream street string student studio
submarine subway suit suitcase sultan summer summit sun sundae sunflower sunrise sunset surfer surgeon swamp swan
sweater swing sword sycamore syrup table tablet tadpole tailor tambourine tangerine tank tapestry tar target tavern taxi
tea teacher teacup teapot temple tennis tent terrace terrier theater thermos thicket thimble thistle thorn thread throne
thumb thunder thyme ticket tide tiger tile timber tinsel toad toast toaster tomato tool tooth topaz torch tornado
tortoise totem toucan towel tower town toy tractor trail train tram trapeze traveler tray treasure treaty tree trellis
trench triangle tribe tricycle trolley trombone trophy trout truck trumpet trunk tuba tugboat tulip tuna tundra tunnel
turban turbine turkey turnip turquoise turtle tuxedo twig twilight typhoon umbrella uncle unicorn uniform urchin urn
vacuum valley valve van vanilla vase vault veil vein velvet vendor venue veranda vest veteran viaduct vicar video
village vine vineyard viola violet violin viper visitor visor voice volcano voyage vulture wafer waffle wagon waiter
wall wallet walnut walrus waltz wand wardrobe warrior wasp watch water waterfall wave weasel weaver web wedding weed
week well whale wharf wheat wheel whisker whistle wick widow wildcat willow wind windmill window wine wing winter wire
witch wizard wolf wombat wood woodpecker wool wrench wrestler wrist writer yacht yak yam yard yarn yogurt yolk zebra
zephyr zeppelin zinc zipper zither zone zoo zucchini
"""

ADJECTIVES, NOUNS = words(_ADJECTIVES), words(_NOUNS)
WORDS = {
    "adjective": words(
        "amber ancient bitter blind bold brave brisk broad calm careful clever cold curious damp dark dear deep "
        "distant dusty eager early empty even faint fair false famous fine firm free fresh gentle glad golden grand "
        "grave great green grey hidden hollow honest humble idle kind large late lazy light little lonely long loud "
        "lucky mild modest narrow new noble old open pale patient plain polite proud quick quiet rare rough sad "
        "sharp short silent silver simple slow small soft solemn steady strange strong sudden sunny sweet tall thin "
        "tired vast warm weary wet wide wild wise worn young"),
    "noun": words(
        "anchor apple attic baker barn basket beacon bell blanket boat book bottle bridge brook broom bucket cabin "
        "candle canvas carpenter castle cellar chair chapel chest chimney clock cloud coat coin compass cook corner "
        "cottage cradle crown cup curtain desk door drum engine farmer feather fence ferry field fiddle fire flag "
        "flute forest fountain garden gate ghost glove guest hammer harbor hat hill horse inn island jar key kitchen "
        "kite ladder lamp lantern letter lighthouse map market meadow mill mirror monk moon mountain needle oven owl "
        "painter palace path pencil pilot pond postman quilt river road roof rope sailor school shadow shepherd ship "
        "shoe shop singer spoon stable star stone storm stove street tailor teacher tower train tree valley village "
        "violin wagon wall well wheel whistle window winter wolf"),
    "verb": words(
        "answered borrowed bought broke built buried called carried caught chased cleaned copied counted covered "
        "crossed described drew drove dropped earned emptied fed followed forgot found guarded heard held hid joined "
        "kept kissed knew left lifted lit lost loved made measured mended met missed moved named noticed opened "
        "owned painted passed praised promised pulled pushed reached read remembered repaired saved sent shared "
        "sheltered showed sold stole studied taught thanked took touched traded trusted turned visited warned washed "
        "watched weighed welcomed wrote"),
    "adverb": words(
        "again almost alone always badly barely carefully easily finally gladly hardly kindly lately loudly mostly "
        "nearly neatly never often once perhaps plainly proudly quickly quietly rarely sadly safely secretly seldom "
        "slowly softly somehow soon still suddenly together twice warmly wisely"),
    "name": words(
        "Abel Ada Agnes Albert Alma Amos Anton Arthur Beatrice Bela Bruno Carla Cecil Clara Conrad Cora Cyril Dora "
        "Edgar Edith Elias Ella Emil Enid Ernest Esther Felix Flora Frida Georg Gerda Greta Gustav Hanna Harold "
        "Hazel Hector Hilda Hugo Ida Igor Irene Iris Ivan Jasper Jonas Julia Karl Klara Lena Leo Linus Lotte Louis "
        "Mabel Magda Marcus Martha Max Mina Moses Nadia Nils Nora Oscar Otto Paula Pavel Petra Quentin Rosa Ruben "
        "Ruth Selma Simon Sonia Stella Sven Thea Theo Tilda Tobias Ulrich Ursula Vera Victor Viola Walter Wanda "
        "Xenia Yusuf Zara Zelda"),
    "place": words(
        "Alderby Ashwick Barrow Bexley Birchfield Blakemoor Brindle Calder Carrick Copley Dunmore Eastham Elmstead "
        "Fairlea Farley Glenford Greycliff Harrowgate Hartwell Holmby Inverlea Kelby Kingsmere Lakeholt Langdale "
        "Larkhill Marlow Merton Milden Moorend Netherby Norwell Oakley Ostley Penrose Quarley Redmoor Rowan Saltby "
        "Selwick Stanmore Thornley Tilbrook Underhill Wexcombe Whitby Wickford Yarrow"),
    "time": words(
        "at dawn|at dusk|at midnight|at noon|before breakfast|in April|in August|in autumn|in December|in February|"
        "in January|in July|in June|in March|in May|in November|in October|in September|in spring|in summer|"
        "in the rain|in winter|last night|on Friday|on Monday|on Saturday|on Sunday|on Thursday|on Tuesday|"
        "on Wednesday|that evening|that morning|this week|yesterday", "|"),
}
