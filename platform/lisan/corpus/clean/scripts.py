"""Languages and scripts of labels, and the scripts of each language.

A label is BCP 47-like: `ar`, `fa-IR`, `pes_Arab`, `ary-Latn`. Its first subtag is an ISO 639 code of two or three letters;
a later subtag of four letters is an ISO 15924 code. Case and the choice of '-' or '_' do not count.
"""

import re
from functools import lru_cache

import regex

_MEMBERS = """aar=aa abk=ab afr=af aka=ak twi=ak fat=ak amh=am arg=an ara=ar arb=ar asm=as ava=av aym=ay ayr=ay aze=az azj=az
bak=ba bel=be bul=bg bih=bh bis=bi bam=bm ben=bn bod=bo tib=bo bre=br bos=bs cat=ca che=ce cos=co ces=cs cze=cs chv=cv cym=cy
wel=cy dan=da deu=de ger=de div=dv dzo=dz ewe=ee ell=el gre=el eng=en epo=eo spa=es est=et ekk=et eus=eu baq=eu fas=fa per=fa
pes=fa prs=fa ful=ff fuv=ff fin=fi fij=fj fao=fo fra=fr fre=fr fry=fy gle=ga gla=gd glg=gl grn=gn gug=gn guj=gu glv=gv hau=ha
heb=he iw=he hin=hi hrv=hr hat=ht hun=hu hye=hy arm=hy ina=ia ind=id in=id ile=ie ibo=ig iii=ii ipk=ik ido=io isl=is ice=is
ita=it iku=iu jpn=ja jav=jv kat=ka geo=ka kon=kg kik=ki kaz=kk kal=kl khm=km kan=kn kor=ko kas=ks kur=ku kmr=ku cor=kw kir=ky
lat=la ltz=lb lug=lg lim=li lin=ln lao=lo lit=lt lub=lu lav=lv lvs=lv mlg=mg plt=mg mri=mi mao=mi mkd=mk mac=mk mal=ml mon=mn
khk=mn mar=mr msa=ms may=ms zsm=ms mlt=mt mya=my bur=my nob=nb nde=nd nep=ne npi=ne nld=nl dut=nl nno=nn nor=no nav=nv nya=ny
oci=oc oji=oj orm=om gaz=om ori=or ory=or oss=os pan=pa pol=pl pus=ps pbt=ps pbu=ps por=pt que=qu quy=qu quz=qu roh=rm run=rn
ron=ro rum=ro mo=ro rus=ru kin=rw san=sa srd=sc snd=sd sme=se sag=sg sin=si slk=sk slo=sk slv=sl smo=sm sna=sn som=so sqi=sq
alb=sq als=sq srp=sr ssw=ss sot=st sun=su swe=sv swa=sw swh=sw tam=ta tel=te tgk=tg tha=th tir=ti tuk=tk tgl=tl fil=tl tsn=tn
ton=to tur=tr tso=ts tat=tt tah=ty uig=ug ukr=uk urd=ur uzb=uz uzn=uz ven=ve vie=vi vol=vo wln=wa wol=wo xho=xh yid=yi ydd=yi
ji=yi yor=yo zha=za zho=zh chi=zh cmn=zh zul=zu"""
_CANONICAL = dict(pair.split("=") for pair in _MEMBERS.split())
"ISO 639-3 codes, bibliographic codes and withdrawn ones, by the code of two letters."

_ARABIC = "ar ary arz apc ajp arq aeb ars acm ayl abv acq acw acx adf aec afb apd avl ayh ayn ayp pga shu ssh"
ARABIC_LANGUAGES = tuple(_ARABIC.split())
"Modern Standard Arabic and the dialects that have a code: Moroccan, Egyptian, Levantine, Algerian, ..."

_LANGUAGES_OF = {
    "Arab": """fa ur ps sd ug ku ks pa ckb sdh lki lrc azb bal bqi brh glk mzn pnb skr hno bgn khw az kk ky uz tk ms ha""",
    "Latn": """en fr de es pt it nl ca gl eu oc br cy ga gd gv kw co sc fur lld rm lb fy li nds wa an ast ext mwl vec lmo pms lij
        nap scn eml egl frp gsw bar szl la eo ia ie io vo sv da nb nn no is fo fi se smn sms kl et pl cs sk sl hr bs sr sh sq ro
        hu lv ltg lt mt tr az tk uz kk crh gag tt ku diq zza vi id ms jv su mad min ace ban bjn bug tl ceb ilo hil war pam pag
        bcl tet mg mi sm to ty haw fj tpi bi ho ch mh na pau niu tvl gil rar sw rw rn ln lg kg lu lua luo kam ki mer sn zu xh
        ss st tn ts ve nd nr ny bem tum loz ha yo ig ff wo bm dyu ee ak fon mos kbp sg so om aa kab ber tzm rif shi nus din dik
        kea ht pap srn jam gcf mfe qu ay gn nah nhn yua quc cak kek tzo arn nv oj cr iu ik lus kha af hmn mww za umb cjk kmb""",
    "Cyrl": """ru uk be bg mk sr sh bs mn kk ky tg uz tt ba cv ce os av ab kv kpv koi udm mhr mrj myv mdf bxr xal sah tyv alt krc
        kum lez inh kbd ady lbe dar tab nog crh az tk ku rue kjh ug""",
    "Grek": "el grc pnt",
    "Hebr": "he yi lad",
    "Armn": "hy hyw",
    "Geor": "ka xmf sva",
    "Syrc": "syr syc aii cld arc tru",
    "Thaa": "dv",
    "Ethi": "am ti tig gez byn",
    "Nkoo": "nqo bm",
    "Tfng": "zgh tzm ber shi rif",
    "Deva": "hi mr ne sa mai bho bh mag awa hne bgc bns bra gom kok doi brx mwr raj new sat sd ks dty anp gbm",
    "Beng": "bn as bpy mni ctg syl",
    "Guru": "pa",
    "Gujr": "gu",
    "Orya": "or spv",
    "Taml": "ta",
    "Telu": "te",
    "Knda": "kn tcy kok",
    "Mlym": "ml",
    "Sinh": "si",
    "Olck": "sat",
    "Mtei": "mni",
    "Thai": "th nod tts sou",
    "Laoo": "lo",
    "Khmr": "km",
    "Mymr": "my shn mnw ksw blk rki",
    "Tibt": "bo dz lbj",
    "Mong": "mn",
    "Hang": "ko",
    "Hani": "zh yue wuu hak nan cdo gan hsn lzh ja ko",
    "Hira": "ja",
    "Kana": "ja ain",
    "Cher": "chr",
    "Cans": "iu cr oj",
    "Java": "jv",
    "Bali": "ban",
    "Yiii": "ii",
    "Adlm": "ff",
    "Vaii": "vai",
    "Lisu": "lis",
    "Copt": "cop",
}
"By ISO 15924 code; a language with several scripts may be written in any of them."
_COMBINED = {
    "Jpan": ("Hani", "Hira", "Kana"),
    "Hrkt": ("Hira", "Kana"),
    "Kore": ("Hang", "Hani"),
    "Hang": ("Hang", "Hani"),
}
_COMBINED |= {"Hans": ("Hani",), "Hant": ("Hani",), "Aran": ("Arab",), "Latf": ("Latn",), "Cyrs": ("Cyrl",)}
"ISO 15924 codes that are no script of Unicode."


@lru_cache(maxsize=256)
def language_of(label: str) -> str:
    """Return the language of a label as its shortest ISO 639 code, lower-case: `pes_Arab` and `fa-IR` are `fa`."""
    code = re.split("[-_]", label.strip(), maxsplit=1)[0].lower()
    return _CANONICAL.get(code, code)


@lru_cache(maxsize=256)
def scripts_of(label: str) -> tuple[str, ...]:
    """Return the ISO 15924 codes of a label's script, or of all that its language uses; () where that is not known."""
    for subtag in re.split("[-_]", label.strip())[1:]:
        if re.fullmatch("[A-Za-z]{4}", subtag):
            script = subtag.capitalize()
            return _COMBINED.get(script) or ((script,) if _is_script(script) else ())
    language = language_of(label)
    if language in ARABIC_LANGUAGES:
        return ("Arab",)
    return tuple(script for script, languages in _LANGUAGES_OF.items() if language in languages.split())


def _is_script(code: str) -> bool:
    try:
        return code not in ("Zyyy", "Zinh", "Zzzz") and bool(regex.compile(rf"\p{{Script={code}}}"))
    except regex.error:
        return False


def is_arabic(label: str) -> bool:
    """Tell whether a label means Arabic in Arabic script; `ary-Latn` is Moroccan in Latin letters and does not."""
    return language_of(label) in ARABIC_LANGUAGES and scripts_of(label) == ("Arab",)


def spells_with_joiners(label: str) -> bool:
    """Tell whether zero-width joiners between Arabic letters may be part of the spelling, as in Persian.

    So it is in every language in Arabic script but Arabic, and in every one whose script is not known.
    """
    return not is_arabic(label) and (not scripts_of(label) or "Arab" in scripts_of(label))


@lru_cache(maxsize=64)
def letters_of(scripts: tuple[str, ...]) -> "regex.Pattern[str]":
    """Compile runs of letters of these scripts."""
    members = "".join(rf"\p{{Script={code}}}" for code in scripts)
    return regex.compile(rf"(?V1)[\p{{L}}&&[{members}]]+")
