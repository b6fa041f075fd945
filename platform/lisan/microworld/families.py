"""Tables of the families of everyday things, with names in three languages.

An Arabic noun is in its bare, indefinite singular form with its gender, because counting and the article depend on both;
`-` marks nouns that are not counted.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Noun:
    """A thing of everyday life. Uncountable nouns (colours, bread, rice) have empty plurals."""

    en: str
    en_plural: str
    ar: str
    is_masculine: bool
    ar_plural: str
    ary: str
    ary_plural: str


@dataclass(frozen=True, slots=True)
class Family:
    key: str
    en: str
    "Singular, without an article."
    en_plural: str
    ar_plural: str
    "Definite plural, as it stands after `من`."
    ary_plural: str
    nouns: tuple[Noun, ...]


# English|plural|Arabic|gender|plural|Darija|plural
_TABLES = {
    ("colour", "colour", "colours", "الألوان", "الألوان"): """
red|-|أحمر|m|-|حمر|-
blue|-|أزرق|m|-|زرق|-
green|-|أخضر|m|-|خضر|-
yellow|-|أصفر|m|-|صفر|-
white|-|أبيض|m|-|بيض|-
black|-|أسود|m|-|كحل|-
brown|-|بني|m|-|قهوي|-
grey|-|رمادي|m|-|رمادي|-
pink|-|وردي|m|-|وردي|-
purple|-|بنفسجي|m|-|موف|-
""",
    ("animal", "animal", "animals", "الحيوانات", "الحيوانات"): """
cat|cats|قط|m|قطط|مش|مشاش
dog|dogs|كلب|m|كلاب|كلب|كلاب
lion|lions|أسد|m|أسود|سبع|سبوعة
horse|horses|حصان|m|أحصنة|عود|عودان
cow|cows|بقرة|f|بقرات|بكرة|بكرات
sheep|sheep|خروف|m|خرفان|حولي|حوالا
camel|camels|جمل|m|جمال|جمل|جمال
donkey|donkeys|حمار|m|حمير|حمار|حمير
goat|goats|معزة|f|معزات|معزة|معزات
rabbit|rabbits|أرنب|m|أرانب|قنية|قنيات
elephant|elephants|فيل|m|فيلة|فيل|فيلة
monkey|monkeys|قرد|m|قرود|قرد|قرودة
hen|hens|دجاجة|f|دجاجات|دجاجة|دجاجات
duck|ducks|بطة|f|بطات|بطة|بطات
""",
    ("fruit", "fruit", "fruits", "الفواكه", "الفاكية"): """
apple|apples|تفاحة|f|تفاحات|تفاحة|تفاحات
orange|oranges|برتقالة|f|برتقالات|ليمونة|ليمونات
banana|bananas|موزة|f|موزات|بنانة|بنانات
lemon|lemons|ليمونة|f|ليمونات|حامضة|حامضات
fig|figs|تينة|f|تينات|كرموسة|كرموسات
date|dates|تمرة|f|تمرات|تمرة|تمرات
pomegranate|pomegranates|رمانة|f|رمانات|رمانة|رمانات
peach|peaches|خوخة|f|خوخات|خوخة|خوخات
apricot|apricots|مشمشة|f|مشمشات|مشماشة|مشماشات
pear|pears|إجاصة|f|إجاصات|بوعويدة|بوعويدات
plum|plums|برقوقة|f|برقوقات|برقوقة|برقوقات
watermelon|watermelons|بطيخة|f|بطيخات|دلاحة|دلاحات
melon|melons|شمامة|f|شمامات|سويهلة|سويهلات
""",
    ("vegetable", "vegetable", "vegetables", "الخضروات", "الخضرة"): """
potato|potatoes|حبة بطاطس|f|-|بطاطة|بطاطات
onion|onions|بصلة|f|بصلات|بصلة|بصلات
tomato|tomatoes|حبة طماطم|f|-|مطيشة|مطيشات
carrot|carrots|جزرة|f|جزرات|خيزوة|خيزوات
cucumber|cucumbers|خيارة|f|خيارات|خيارة|خيارات
pepper|peppers|فلفلة|f|فلفلات|فلفلة|فلفلات
garlic|-|ثوم|m|-|تومة|-
eggplant|eggplants|باذنجانة|f|باذنجانات|دنجالة|دنجالات
cabbage|cabbages|كرنب|m|-|مكورة|-
turnip|turnips|لفتة|f|لفتات|لفتة|لفتات
pumpkin|pumpkins|يقطينة|f|يقطينات|كرعة|كرعات
spinach|-|سبانخ|f|-|سبانخ|-
""",
    ("tool", "tool", "tools", "الأدوات", "الدوزان"): """
hammer|hammers|مطرقة|f|مطارق|مطرقة|مطارق
saw|saws|منشار|m|مناشير|منشار|مناشر
screwdriver|screwdrivers|مفك|m|مفكات|تورنفيس|تورنفيسات
axe|axes|فأس|f|فؤوس|شاقور|شواقر
shovel|shovels|مجرفة|f|مجارف|بالة|بالات
pair of pliers|pairs of pliers|كماشة|f|كماشات|كلاب|كلالب
ladder|ladders|سلم|m|سلالم|سلوم|سلالم
drill|drills|مثقاب|m|مثاقب|شينيول|شينيولات
pair of scissors|pairs of scissors|مقص|m|مقصات|مقص|مقصات
needle|needles|إبرة|f|إبر|إبرة|إبرات
brush|brushes|فرشاة|f|فرش|شيتة|شيتات
pickaxe|pickaxes|معول|m|معاول|فاس|فيسان
""",
    ("body", "part of the body", "parts of the body", "أعضاء الجسم", "الدات ديال بنادم"): """
head|heads|رأس|m|رؤوس|راس|ريوس
hand|hands|يد|f|أيد|يد|يدين
eye|eyes|عين|f|عيون|عين|عينين
ear|ears|أذن|f|آذان|ودن|ودنين
nose|noses|أنف|m|أنوف|نيف|نيوفة
mouth|mouths|فم|m|أفواه|فم|فام
leg|legs|ساق|f|سيقان|رجل|رجلين
foot|feet|قدم|f|أقدام|قدم|قدام
arm|arms|ذراع|f|أذرع|دراع|درعان
finger|fingers|إصبع|m|أصابع|صبع|صبعان
knee|knees|ركبة|f|ركب|ركبة|ركابي
tooth|teeth|سن|f|أسنان|سنة|سنان
tongue|tongues|لسان|m|ألسنة|لسان|لسونة
heart|hearts|قلب|m|قلوب|قلب|قلوب
""",
    ("clothing", "piece of clothing", "pieces of clothing", "الملابس", "الحوايج"): """
shirt|shirts|قميص|m|قمصان|قاميجة|قاميجات
pair of trousers|pairs of trousers|سروال|m|سراويل|سروال|سراول
shoe|shoes|حذاء|m|أحذية|صباط|صبابط
hat|hats|قبعة|f|قبعات|طاقية|طاقيات
coat|coats|معطف|m|معاطف|كبوط|كبابط
dress|dresses|فستان|m|فساتين|كسوة|كساوي
scarf|scarves|وشاح|m|أوشحة|شال|شالات
sock|socks|جورب|m|جوارب|تقشيرة|تقاشر
glove|gloves|قفاز|m|قفازات|ليكة|ليكات
belt|belts|حزام|m|أحزمة|سمطة|سماطي
jacket|jackets|سترة|f|سترات|جاكيطة|جاكيطات
djellaba|djellabas|جلباب|m|جلابيب|جلابة|جلالب
""",
    ("food", "food", "foods", "الأطعمة", "الماكلة"): """
bread|-|خبز|m|-|خبز|-
cheese|-|جبن|m|-|فرماج|-
rice|-|أرز|m|-|روز|-
egg|eggs|بيضة|f|بيضات|بيضة|بيضات
meat|-|لحم|m|-|لحم|-
honey|-|عسل|m|-|عسل|-
soup|-|حساء|m|-|حريرة|-
couscous|-|كسكس|m|-|كسكسو|-
butter|-|زبدة|f|-|زبدة|-
cake|cakes|كعكة|f|كعكات|طرطة|طرطات
salad|salads|سلطة|f|سلطات|شلاضة|شلايض
fish|-|سمك|m|-|حوت|-
""",
    ("furniture", "piece of furniture", "pieces of furniture", "الأثاث", "الأثاث ديال الدار"): """
table|tables|طاولة|f|طاولات|طبلة|طبالي
chair|chairs|كرسي|m|كراسي|كرسي|كراسا
bed|beds|سرير|m|أسرة|ناموسية|ناموسيات
sofa|sofas|أريكة|f|أرائك|سداري|سدادر
cupboard|cupboards|خزانة|f|خزائن|ماريو|ماريوات
lamp|lamps|مصباح|m|مصابيح|ضواية|ضوايات
shelf|shelves|رف|m|رفوف|رف|رفوف
desk|desks|مكتب|m|مكاتب|بيرو|بيروات
carpet|carpets|سجادة|f|سجادات|زربية|زرابي
mirror|mirrors|مرآة|f|مرايا|مراية|مرايات
drawer|drawers|درج|m|أدراج|مجر|مجورة
""",
    ("vehicle", "vehicle", "vehicles", "وسائل النقل", "وسائل النقل"): """
car|cars|سيارة|f|سيارات|طوموبيل|طوموبيلات
bus|buses|حافلة|f|حافلات|طوبيس|طوبيسات
bicycle|bicycles|دراجة|f|دراجات|بشكليطة|بشكليطات
train|trains|قطار|m|قطارات|تران|ترانات
plane|planes|طائرة|f|طائرات|طيارة|طيارات
ship|ships|سفينة|f|سفن|باخرة|باخرات
boat|boats|قارب|m|قوارب|فلوكة|فلايك
truck|trucks|شاحنة|f|شاحنات|كاميو|كاميوات
tram|trams|ترام|m|-|طرامواي|طراموايات
helicopter|helicopters|مروحية|f|مروحيات|هيليكوبتر|هيليكوبترات
cart|carts|عربة|f|عربات|كروسة|كرارس
""",
    ("school", "thing for school", "things for school", "الأدوات المدرسية", "الدوزان ديال المدرسة"): """
pen|pens|قلم|m|أقلام|ستيلو|ستيلوات
book|books|كتاب|m|كتب|كتاب|كتوبة
notebook|notebooks|دفتر|m|دفاتر|كناش|كنانش
ruler|rulers|مسطرة|f|مساطر|مسطرة|مساطر
bag|bags|حقيبة|f|حقائب|شكارة|شكاير
eraser|erasers|ممحاة|f|ممحوات|كومة|كومات
map|maps|خريطة|f|خرائط|خريطة|خرايط
blackboard|blackboards|سبورة|f|سبورات|سبورة|سبورات
sheet of paper|sheets of paper|ورقة|f|أوراق|ورقة|وراق
dictionary|dictionaries|قاموس|m|قواميس|قاموس|قوامس
""",
    ("kitchen", "thing for the kitchen", "things for the kitchen", "أدوات المطبخ", "الماعن"): """
plate|plates|صحن|m|صحون|طبسيل|طباسل
spoon|spoons|ملعقة|f|ملاعق|معلقة|معالق
fork|forks|شوكة|f|شوكات|فرشيطة|فرشيطات
cup|cups|فنجان|m|فناجين|فنجال|فناجل
glass|glasses|كأس|f|كؤوس|كاس|كيسان
pot|pots|قدر|f|قدور|طنجرة|طناجر
teapot|teapots|إبريق|m|أباريق|براد|برارد
pan|pans|مقلاة|f|مقال|مقلة|مقالي
bowl|bowls|زبدية|f|زبديات|زلافة|زلايف
tray|trays|صينية|f|صوان|صينية|صواني
knife|knives|سكين|m|سكاكين|موس|مواس
""",
}


def _noun(line: str) -> Noun:
    en, en_plural, ar, gender, ar_plural, ary, ary_plural = (cell.removeprefix("-") for cell in line.split("|"))
    return Noun(en, en_plural, ar, gender == "m", ar_plural, ary, ary_plural)


FAMILIES = {head[0]: Family(*head, tuple(map(_noun, table.strip().splitlines()))) for head, table in _TABLES.items()}
