"""Tables of the countries of the micro-world, with names in English and Arabic.

Every row is real. A disputed or changing field (Jerusalem, Nusantara) is empty. `borders` has every land border between two
countries of the table, because a wrong choice must never be right by accident.
"""

from dataclasses import dataclass
from typing import NamedTuple


class Name(NamedTuple):
    """One thing called in two languages; Darija calls countries, cities, currencies and languages as Arabic does."""

    en: str
    ar: str


@dataclass(frozen=True, slots=True)
class Country:
    code: str
    name: Name
    is_masculine: bool
    "Gender of the Arabic name; most names of countries are feminine."
    capital: Name | None
    currencies: tuple[str, ...]
    "Keys of CURRENCIES: the stated one, then others in use."
    continents: tuple[str, ...]
    "Keys of CONTINENTS: the stated one, then others that are not wrong."
    languages: tuple[str, ...]
    "Keys of LANGUAGES, or of languages without a row: the main one, then others that are official or widely spoken."
    borders: tuple[str, ...]


CONTINENTS = {
    "africa": Name("Africa", "إفريقيا"),
    "asia": Name("Asia", "آسيا"),
    "europe": Name("Europe", "أوروبا"),
    "namerica": Name("North America", "أمريكا الشمالية"),
    "samerica": Name("South America", "أمريكا الجنوبية"),
    "oceania": Name("Oceania", "أوقيانوسيا"),
}

_CURRENCIES = """
afghani|الأفغاني
ariary|الأرياري
baht|البات
balboa|البالبوا
birr|البير
boliviano|البوليفيانو
bolivar|البوليفار
cedi|السيدي
CFA franc|الفرنك الإفريقي
colon|الكولون
cordoba|الكوردوبا
dalasi|الدالاسي
denar|الدينار
dinar|الدينار
dirham|الدرهم
dollar|الدولار
dong|الدونغ
dram|الدرام
euro|اليورو
forint|الفورنت
franc|الفرنك
gourde|الغورد
guarani|الغواراني
hryvnia|الهريفنيا
kip|الكيب
koruna|الكورونا
krona|الكرونة
krone|الكرونة
kwacha|الكواشا
kwanza|الكوانزا
kyat|الكيات
lari|اللاري
lek|الليك
lempira|اللمبيرا
leu|الليو
lira|الليرة
manat|المانات
mark|المارك
metical|الميتيكال
naira|النايرا
nakfa|الناكفا
ouguiya|الأوقية
peso|البيزو
pound|الجنيه
pula|البولا
quetzal|الكيتزال
real|الريال البرازيلي
rial|الريال
riel|الرييل
ringgit|الرينغيت
riyal|الريال
ruble|الروبل
rupee|الروبية
rupiah|الروبية
shekel|الشيكل
shilling|الشلن
sol|السول
som|السوم
somoni|السوموني
taka|التاكا
tenge|التنغي
tugrik|التوغريك
won|الوون
yen|الين
yuan|اليوان
zloty|الزلوتي
"""

_LANGUAGES = """
Albanian|الألبانية
Amharic|الأمهرية
Arabic|العربية
Armenian|الأرمينية
Azerbaijani|الأذرية
Bambara|البامبارية
Belarusian|البيلاروسية
Bengali|البنغالية
Bosnian|البوسنية
Bulgarian|البلغارية
Burmese|البورمية
Chinese|الصينية
Comorian|القمرية
Croatian|الكرواتية
Czech|التشيكية
Danish|الدنماركية
Dari|الدرية
Dutch|الهولندية
English|الإنجليزية
Estonian|الإستونية
Filipino|الفلبينية
Finnish|الفنلندية
French|الفرنسية
Georgian|الجورجية
German|الألمانية
Greek|اليونانية
Hausa|الهوسا
Hindi|الهندية
Hungarian|المجرية
Icelandic|الأيسلندية
Indonesian|الإندونيسية
Italian|الإيطالية
Japanese|اليابانية
Kazakh|الكازاخية
Khmer|الخميرية
Kinyarwanda|الكينيارواندية
Kirundi|الكيروندية
Korean|الكورية
Kyrgyz|القيرغيزية
Lao|اللاوية
Latvian|اللاتفية
Lithuanian|الليتوانية
Luxembourgish|اللوكسمبورغية
Macedonian|المقدونية
Malagasy|الملغاشية
Malay|الملايوية
Maltese|المالطية
Mongolian|المنغولية
Montenegrin|المونتينيغرية
Nepali|النيبالية
Norwegian|النرويجية
Persian|الفارسية
Polish|البولندية
Portuguese|البرتغالية
Romanian|الرومانية
Russian|الروسية
Serbian|الصربية
Slovak|السلوفاكية
Slovenian|السلوفينية
Somali|الصومالية
Spanish|الإسبانية
Swahili|السواحيلية
Swedish|السويدية
Tajik|الطاجيكية
Thai|التايلاندية
Tigrinya|التغرينية
Turkish|التركية
Turkmen|التركمانية
Ukrainian|الأوكرانية
Urdu|الأردية
Uzbek|الأوزبكية
Vietnamese|الفيتنامية
Wolof|الولوفية
"""

# code|English|Arabic|gender|capital|capital in Arabic|currencies|continents|languages|every land border
_COUNTRIES = """
MA|Morocco|المغرب|m|Rabat|الرباط|dirham|africa|Arabic,Tamazight,French,Spanish|DZ ES
DZ|Algeria|الجزائر|f|Algiers|الجزائر العاصمة|dinar|africa|Arabic,Tamazight,French|TN LY MA NE ML MR
TN|Tunisia|تونس|f|Tunis|مدينة تونس|dinar|africa|Arabic,French|LY DZ
LY|Libya|ليبيا|f|Tripoli|طرابلس|dinar|africa|Arabic|EG TN SD TD NE DZ
EG|Egypt|مصر|f|Cairo|القاهرة|pound|africa,asia|Arabic|SD LY PS
SD|Sudan|السودان|m|Khartoum|الخرطوم|pound|africa|Arabic,English|EG TD SS ER ET LY
MR|Mauritania|موريتانيا|f|Nouakchott|نواكشوط|ouguiya|africa|Arabic,French,Wolof|SN ML DZ
SO|Somalia|الصومال|m|Mogadishu|مقديشو|shilling,dollar|africa|Somali,Arabic|ET KE DJ
DJ|Djibouti|جيبوتي|f|Djibouti City|مدينة جيبوتي|franc|africa|Arabic,French,Somali|ER ET SO
KM|the Comoros|جزر القمر|f|Moroni|موروني|franc|africa|Comorian,Arabic,French|
SN|Senegal|السنغال|f|Dakar|داكار|CFA franc|africa|Wolof,French|GM ML MR GN
GM|the Gambia|غامبيا|f|Banjul|بانجول|dalasi|africa|English,Wolof|SN
ML|Mali|مالي|f|Bamako|باماكو|CFA franc|africa|Bambara,French|SN GN NE DZ MR CI
NE|Niger|النيجر|f|Niamey|نيامي|CFA franc|africa|Hausa,French|NG TD ML DZ LY
NG|Nigeria|نيجيريا|f|Abuja|أبوجا|naira|africa|English,Hausa|NE CM TD
GH|Ghana|غانا|f|Accra|أكرا|cedi|africa|English,Hausa|CI
CI|Ivory Coast|ساحل العاج|m|Yamoussoukro|ياموسوكرو|CFA franc|africa|French|GH GN ML
GN|Guinea|غينيا|f|Conakry|كوناكري|franc|africa|French|SN CI ML
CM|Cameroon|الكاميرون|f|Yaounde|ياوندي|CFA franc|africa|French,English|NG TD GA
GA|Gabon|الغابون|f|Libreville|ليبرفيل|CFA franc|africa|French|CM
TD|Chad|تشاد|f|N'Djamena|إنجامينا|CFA franc|africa|Arabic,French|CM NG SD LY NE
ET|Ethiopia|إثيوبيا|f|Addis Ababa|أديس أبابا|birr|africa|Amharic,Somali,Tigrinya|KE ER SD SO DJ SS
ER|Eritrea|إريتريا|f|Asmara|أسمرة|nakfa|africa|Tigrinya,Arabic,English|ET DJ SD
KE|Kenya|كينيا|f|Nairobi|نيروبي|shilling|africa|Swahili,English|TZ UG ET SO SS
UG|Uganda|أوغندا|f|Kampala|كمبالا|shilling|africa|English,Swahili|KE RW TZ SS
TZ|Tanzania|تنزانيا|f|Dodoma|دودوما|shilling|africa|Swahili,English|KE ZM MZ UG RW BI
RW|Rwanda|رواندا|f|Kigali|كيغالي|franc|africa|Kinyarwanda,English,French,Swahili|BI UG TZ
BI|Burundi|بوروندي|f|Gitega|غيتيغا|franc|africa|Kirundi,French,English,Swahili|RW TZ
ZM|Zambia|زامبيا|f|Lusaka|لوساكا|kwacha|africa|English|AO TZ MZ NA BW
MZ|Mozambique|موزمبيق|f|Maputo|مابوتو|metical|africa|Portuguese,Swahili|TZ ZM
AO|Angola|أنغولا|f|Luanda|لواندا|kwanza|africa|Portuguese|NA ZM
NA|Namibia|ناميبيا|f|Windhoek|ويندهوك|dollar|africa|English,German|BW AO ZM
BW|Botswana|بوتسوانا|f|Gaborone|غابورون|pula|africa|English|NA ZM
MG|Madagascar|مدغشقر|f|Antananarivo|أنتاناناريفو|ariary|africa|Malagasy,French|
SS|South Sudan|جنوب السودان|m|Juba|جوبا|pound|africa|English,Arabic,Swahili|UG SD KE ET
SA|Saudi Arabia|السعودية|f|Riyadh|الرياض|riyal|asia|Arabic|JO YE IQ KW QA AE OM
YE|Yemen|اليمن|m|Sanaa|صنعاء|rial|asia|Arabic|OM SA
OM|Oman|سلطنة عمان|f|Muscat|مسقط|rial|asia|Arabic|AE YE SA
AE|the United Arab Emirates|الإمارات|f|Abu Dhabi|أبو ظبي|dirham|asia|Arabic,English|OM SA
QA|Qatar|قطر|f|Doha|الدوحة|riyal|asia|Arabic|SA
BH|Bahrain|البحرين|f|Manama|المنامة|dinar|asia|Arabic|
KW|Kuwait|الكويت|f|Kuwait City|مدينة الكويت|dinar|asia|Arabic|IQ SA
IQ|Iraq|العراق|m|Baghdad|بغداد|dinar|asia|Arabic,Kurdish|SY IR JO KW SA TR
SY|Syria|سوريا|f|Damascus|دمشق|lira|asia|Arabic,Kurdish|LB TR IQ JO
LB|Lebanon|لبنان|m|Beirut|بيروت|lira,dollar|asia|Arabic,French|SY
JO|Jordan|الأردن|m|Amman|عمان|dinar|asia|Arabic|PS SY SA IQ
PS|Palestine|فلسطين|f|||shekel,dinar|asia|Arabic|JO EG
TR|Turkey|تركيا|f|Ankara|أنقرة|lira|asia,europe|Turkish,Kurdish|SY GR BG GE IR IQ AM AZ
IR|Iran|إيران|f|Tehran|طهران|rial|asia|Persian,Azerbaijani,Kurdish|IQ AF TR PK AM AZ TM
AF|Afghanistan|أفغانستان|f|Kabul|كابول|afghani|asia|Dari,Pashto,Persian,Uzbek,Turkmen,Tajik|PK TJ IR TM UZ CN
PK|Pakistan|باكستان|f|Islamabad|إسلام آباد|rupee|asia|Urdu,English,Hindi|IN AF IR CN
IN|India|الهند|f|New Delhi|نيودلهي|rupee|asia|Hindi,English,Urdu,Bengali,Nepali|NP BD PK CN MM
BD|Bangladesh|بنغلاديش|f|Dhaka|دكا|taka|asia|Bengali|IN MM
NP|Nepal|نيبال|f|Kathmandu|كاتماندو|rupee|asia|Nepali,Hindi|CN IN
CN|China|الصين|f|Beijing|بكين|yuan|asia|Chinese|MN VN IN NP KZ KG TJ AF PK MM LA RU KP
MN|Mongolia|منغوليا|f|Ulaanbaatar|أولان باتور|tugrik|asia|Mongolian|RU CN
JP|Japan|اليابان|f|Tokyo|طوكيو|yen|asia|Japanese|
KR|South Korea|كوريا الجنوبية|f|Seoul|سيول|won|asia|Korean|KP
KP|North Korea|كوريا الشمالية|f|Pyongyang|بيونغ يانغ|won|asia|Korean|KR CN RU
VN|Vietnam|فيتنام|f|Hanoi|هانوي|dong|asia|Vietnamese|LA KH CN
LA|Laos|لاوس|f|Vientiane|فيينتيان|kip,baht|asia|Lao|VN TH KH MM CN
KH|Cambodia|كمبوديا|f|Phnom Penh|بنوم بنه|riel,dollar|asia|Khmer|TH VN LA
TH|Thailand|تايلاند|f|Bangkok|بانكوك|baht|asia|Thai|MM MY LA KH
MM|Myanmar|ميانمار|f|Naypyidaw|نايبيداو|kyat|asia|Burmese|TH BD LA IN CN
MY|Malaysia|ماليزيا|f|Kuala Lumpur|كوالالمبور|ringgit|asia|Malay,English,Chinese,Indonesian|TH ID
ID|Indonesia|إندونيسيا|f|||rupiah|asia|Indonesian,Malay|MY
PH|the Philippines|الفلبين|f|Manila|مانيلا|peso|asia|Filipino,English|
KZ|Kazakhstan|كازاخستان|f|Astana|أستانا|tenge|asia,europe|Kazakh,Russian|RU UZ KG CN TM
UZ|Uzbekistan|أوزبكستان|f|Tashkent|طشقند|som|asia|Uzbek,Russian,Tajik|KZ TJ AF KG TM
TM|Turkmenistan|تركمانستان|f|Ashgabat|عشق آباد|manat|asia|Turkmen,Russian|UZ IR AF KZ
KG|Kyrgyzstan|قيرغيزستان|f|Bishkek|بيشكيك|som|asia|Kyrgyz,Russian,Uzbek|KZ TJ UZ CN
TJ|Tajikistan|طاجيكستان|f|Dushanbe|دوشنبه|somoni|asia|Tajik,Persian,Russian,Uzbek,Dari|AF UZ KG CN
AZ|Azerbaijan|أذربيجان|f|Baku|باكو|manat|asia,europe|Azerbaijani,Russian,Turkish|GE IR AM RU TR
AM|Armenia|أرمينيا|f|Yerevan|يريفان|dram|asia,europe|Armenian,Russian|GE IR AZ TR
GE|Georgia|جورجيا|f|Tbilisi|تبليسي|lari|asia,europe|Georgian,Russian|AM TR AZ RU
FR|France|فرنسا|f|Paris|باريس|euro|europe|French|ES DE BE IT CH LU
ES|Spain|إسبانيا|f|Madrid|مدريد|euro|europe|Spanish|PT FR MA
PT|Portugal|البرتغال|f|Lisbon|لشبونة|euro|europe|Portuguese|ES
IT|Italy|إيطاليا|f|Rome|روما|euro|europe|Italian,German,Slovenian|CH AT FR SI
DE|Germany|ألمانيا|f|Berlin|برلين|euro|europe|German,Danish|PL FR CZ DK AT CH NL BE LU
AT|Austria|النمسا|f|Vienna|فيينا|euro|europe|German,Croatian,Slovenian,Hungarian|HU DE IT CH CZ SK SI
CH|Switzerland|سويسرا|f|Bern|برن|franc,euro|europe|German,French,Italian|FR AT IT DE
BE|Belgium|بلجيكا|f|Brussels|بروكسل|euro|europe|Dutch,French,German|NL FR DE LU
NL|the Netherlands|هولندا|f|Amsterdam|أمستردام|euro|europe|Dutch,English|BE DE
LU|Luxembourg|لوكسمبورغ|f|Luxembourg City|مدينة لوكسمبورغ|euro|europe|Luxembourgish,French,German|BE DE FR
GB|the United Kingdom|المملكة المتحدة|f|London|لندن|pound|europe|English|IE
IE|Ireland|أيرلندا|f|Dublin|دبلن|euro|europe|English,Irish|GB
NO|Norway|النرويج|f|Oslo|أوسلو|krone|europe|Norwegian|SE FI RU
SE|Sweden|السويد|f|Stockholm|ستوكهولم|krona|europe|Swedish,Finnish|NO FI
FI|Finland|فنلندا|f|Helsinki|هلسنكي|euro|europe|Finnish,Swedish|SE RU NO
DK|Denmark|الدنمارك|f|Copenhagen|كوبنهاغن|krone|europe|Danish,German|DE
IS|Iceland|أيسلندا|f|Reykjavik|ريكيافيك|krona|europe|Icelandic|
PL|Poland|بولندا|f|Warsaw|وارسو|zloty|europe|Polish|DE UA CZ SK LT BY RU
CZ|Czechia|التشيك|f|Prague|براغ|koruna|europe|Czech,Slovak|SK PL DE AT
SK|Slovakia|سلوفاكيا|f|Bratislava|براتيسلافا|euro|europe|Slovak,Hungarian,Czech|HU CZ PL AT UA
HU|Hungary|المجر|f|Budapest|بودابست|forint|europe|Hungarian|RO AT SK RS HR SI UA
RO|Romania|رومانيا|f|Bucharest|بوخارست|leu|europe|Romanian,Hungarian|BG MD HU RS UA
BG|Bulgaria|بلغاريا|f|Sofia|صوفيا|euro|europe|Bulgarian,Turkish|RO GR RS MK TR
GR|Greece|اليونان|f|Athens|أثينا|euro|europe|Greek|AL BG TR MK
AL|Albania|ألبانيا|f|Tirana|تيرانا|lek|europe|Albanian|GR ME MK
MK|North Macedonia|مقدونيا الشمالية|f|Skopje|سكوبيه|denar,euro|europe|Macedonian,Albanian|RS AL GR BG
RS|Serbia|صربيا|f|Belgrade|بلغراد|dinar|europe|Serbian,Croatian,Bosnian,Montenegrin,Hungarian|BA HR ME HU RO BG MK
BA|Bosnia|البوسنة|f|Sarajevo|سراييفو|mark,euro|europe|Bosnian,Serbian,Croatian,Montenegrin|HR ME RS
ME|Montenegro|الجبل الأسود|m|Podgorica|بودغوريتسا|euro|europe|Montenegrin,Serbian,Bosnian,Croatian,Albanian|BA AL RS HR
HR|Croatia|كرواتيا|f|Zagreb|زغرب|euro|europe|Croatian,Serbian,Bosnian,Montenegrin,Italian|SI BA HU RS ME
SI|Slovenia|سلوفينيا|f|Ljubljana|ليوبليانا|euro|europe|Slovenian,Italian,Hungarian|HR IT AT HU
UA|Ukraine|أوكرانيا|f|Kyiv|كييف|hryvnia|europe|Ukrainian,Russian|MD PL BY RO SK HU RU
BY|Belarus|بيلاروسيا|f|Minsk|مينسك|ruble|europe|Belarusian,Russian|LT UA PL LV RU
MD|Moldova|مولدوفا|f|Chisinau|كيشيناو|leu|europe|Romanian,Russian,Ukrainian|RO UA
LT|Lithuania|ليتوانيا|f|Vilnius|فيلنيوس|euro|europe|Lithuanian,Russian,Polish|LV BY PL RU
LV|Latvia|لاتفيا|f|Riga|ريغا|euro|europe|Latvian,Russian|EE LT BY RU
EE|Estonia|إستونيا|f|Tallinn|تالين|euro|europe|Estonian,Russian|RU LV
RU|Russia|روسيا|f|Moscow|موسكو|ruble|europe,asia|Russian|FI MN EE LV LT BY UA PL NO GE AZ KZ CN KP
MT|Malta|مالطا|f|Valletta|فاليتا|euro|europe|Maltese,English,Italian|
CY|Cyprus|قبرص|f|Nicosia|نيقوسيا|euro|europe,asia|Greek,Turkish,English|
US|the United States|الولايات المتحدة|f|Washington|واشنطن|dollar|namerica|English,Spanish|CA MX
CA|Canada|كندا|f|Ottawa|أوتاوا|dollar|namerica|English,French|US
MX|Mexico|المكسيك|f|Mexico City|مدينة مكسيكو|peso|namerica|Spanish|GT US
GT|Guatemala|غواتيمالا|f|Guatemala City|مدينة غواتيمالا|quetzal|namerica|Spanish|MX HN SV
HN|Honduras|هندوراس|f|Tegucigalpa|تيغوسيغالبا|lempira|namerica|Spanish|NI SV GT
SV|El Salvador|السلفادور|f|San Salvador|سان سلفادور|dollar|namerica|Spanish|GT HN
NI|Nicaragua|نيكاراغوا|f|Managua|ماناغوا|cordoba,dollar|namerica|Spanish|CR HN
CR|Costa Rica|كوستاريكا|f|San Jose|سان خوسيه|colon,dollar|namerica|Spanish|PA NI
PA|Panama|بنما|f|Panama City|مدينة بنما|balboa,dollar|namerica|Spanish|CO CR
CU|Cuba|كوبا|f|Havana|هافانا|peso|namerica|Spanish|
JM|Jamaica|جامايكا|f|Kingston|كينغستون|dollar|namerica|English|
HT|Haiti|هايتي|f|Port-au-Prince|بورت أو برنس|gourde|namerica|French|DO
DO|the Dominican Republic|جمهورية الدومينيكان|f|Santo Domingo|سانتو دومينغو|peso|namerica|Spanish|HT
CO|Colombia|كولومبيا|f|Bogota|بوغوتا|peso|samerica|Spanish|VE EC PE BR PA
VE|Venezuela|فنزويلا|f|Caracas|كاراكاس|bolivar,dollar|samerica|Spanish|CO BR
EC|Ecuador|الإكوادور|f|Quito|كيتو|dollar|samerica|Spanish|PE CO
PE|Peru|بيرو|f|Lima|ليما|sol,dollar|samerica|Spanish|CL EC BO BR CO
BR|Brazil|البرازيل|f|Brasilia|برازيليا|real|samerica|Portuguese|UY PY AR PE BO CO VE
BO|Bolivia|بوليفيا|f|||boliviano|samerica|Spanish|PE CL BR PY AR
PY|Paraguay|باراغواي|f|Asuncion|أسونسيون|guarani|samerica|Spanish,Guarani|AR BR BO
UY|Uruguay|أوروغواي|f|Montevideo|مونتيفيديو|peso|samerica|Spanish|BR AR
AR|Argentina|الأرجنتين|f|Buenos Aires|بوينس آيرس|peso|samerica|Spanish|CL UY PY BO BR
CL|Chile|تشيلي|f|Santiago|سانتياغو|peso|samerica|Spanish|AR PE BO
AU|Australia|أستراليا|f|Canberra|كانبرا|dollar|oceania|English|
NZ|New Zealand|نيوزيلندا|f|Wellington|ويلينغتون|dollar|oceania|English,Maori|
FJ|Fiji|فيجي|f|Suva|سوفا|dollar|oceania|English,Fijian,Hindi|
"""


def _names(table: str, article: str = "") -> dict[str, Name]:
    rows = (line.split("|") for line in table.strip().splitlines())
    return {en: Name(article + en, ar) for en, ar in rows}


def _country(line: str) -> Country:
    code, en, ar, gender, capital_en, capital_ar, currencies, continents, languages, borders = line.split("|")
    return Country(
        code,
        Name(en, ar),
        gender == "m",
        Name(capital_en, capital_ar) if capital_en else None,
        tuple(currencies.split(",")),
        tuple(continents.split(",")),
        tuple(languages.split(",")),
        tuple(borders.split()),
    )


CURRENCIES = _names(_CURRENCIES, "the ")
LANGUAGES = _names(_LANGUAGES)
COUNTRIES = {country.code: country for country in map(_country, _COUNTRIES.strip().splitlines())}

NEVER_CHOSEN_BORDERS = frozenset(
    frozenset(pair.split()) for pair in ("MA MR", "IN AF", "RS AL", "FR BR", "NL FR", "GB ES", "GB CY")
)
"Pairs of which a border is disputed or lies overseas: neither stated nor offered as a wrong choice."
