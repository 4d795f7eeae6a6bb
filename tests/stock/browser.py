"""Drives headless Chromium through the console: python3 browser.py BASE LINK SESSION LIVE COMMAND
COMMAND is run once the live view stands; what it prints must appear there. Pictures go to $SHOTS, if that is set."""
import json, os, subprocess, sys, time
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

base, link, session, live, command = sys.argv[1:6]
options = webdriver.ChromeOptions()
options.binary_location = '/usr/bin/chromium'
for flag in ('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--window-size=1400,1000',
             '--disable-background-networking', '--disable-component-update', '--no-first-run'):
    options.add_argument(flag)
options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
driver = webdriver.Chrome(service=Service('/usr/bin/chromedriver'), options=options)
driver.set_page_load_timeout(30)
shots = os.environ.get('SHOTS')

def wait(what, found):
    try:
        return WebDriverWait(driver, 20, 0.05).until(lambda _: found())
    except Exception:
        picture('failed')
        raise SystemExit(f'waited for {what}; the page says:\n{driver.find_element(By.TAG_NAME, "body").text}\n{driver.get_log("browser")}')

def css(selector):
    return driver.find_element(By.CSS_SELECTOR, selector)

def all_of(selector):
    return driver.find_elements(By.CSS_SELECTOR, selector)

def picture(name):
    if shots:
        driver.save_screenshot(f'{shots}/{name}.png')

def media(scheme):
    driver.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': [{'name': 'prefers-color-scheme', 'value': scheme}]})

def pictures(name):
    if not shots:
        return
    for scheme in ('light', 'dark'):
        media(scheme)
        for width, height in ((1400, 1000), (400, 860)):
            driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride',
                                   {'width': width, 'height': height, 'deviceScaleFactor': 1, 'mobile': False})
            time.sleep(0.4)
            picture(f'{name}-{scheme}-{"wide" if width > 1000 else "narrow"}')
    media('light')
    driver.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})

def screen():
    return '\n'.join(line.get_attribute('textContent') for line in all_of('.ap-term-text .ap-line'))

def clean(where):
    bad = [entry for entry in driver.get_log('browser') if entry['level'] in ('SEVERE', 'WARNING')]
    if bad:
        raise SystemExit(f'{where}: the browser complains: {json.dumps(bad, indent=1)}')

try:
    # The link, the list, the filter.
    driver.get(base + link)
    wait('the list', lambda: driver.current_url == base + '/sessions')
    assert css('h1').text == 'Sessions' and css('.who').text.startswith('oscar'), css('body').text
    assert driver.get_cookies()[0]['httpOnly'] and driver.execute_script('return document.cookie') == ''
    pictures('sessions')
    field = css('input[name=command]')
    field.send_keys('needle' + Keys.ENTER)
    wait('the filtered list', lambda: 'command=needle' in driver.current_url and 'of 1,' in css('.count').text)
    clean('list')

    # The recording plays, by keyboard; it is sought and marked.
    css('td.when a').send_keys(Keys.ENTER)
    wait('the player', lambda: all_of('.ap-term-text'))
    wait('a mark', lambda: len(all_of('#marks li')) >= 1)
    clean('session')
    driver.execute_script('window.keyward.player.play()')
    wait('the needle on the screen', lambda: 'needle-one' in screen())
    driver.execute_script('window.keyward.player.pause()')
    assert '<b>bold</b>' in screen(), screen()
    assert not all_of('.ap-term-text b')
    driver.execute_script('window.keyward.seek(0)')
    wait('the beginning', lambda: 'needle-two' not in screen())
    place = css('#goto')
    place.send_keys('59' + Keys.ENTER)
    wait('the end', lambda: 'needle-two' in screen())
    pictures('session')
    css('#verify').click()
    wait('the verdict', lambda: 'Whole and unchanged' in css('#verdict').text)
    assert 'good' in css('#verdict').get_attribute('class')
    assert all_of('table.ledger tbody tr'), 'the ledger'
    clean('session')
    driver.execute_script('window.scrollTo(0, document.body.scrollHeight)')
    pictures('ledger')

    # Search leads to the place.
    driver.get(base + '/search')
    css('input[name=pattern]').send_keys('needle-two' + Keys.ENTER)
    wait('a hit', lambda: all_of('.found td.when a'))
    pictures('search')
    css('.found tr.output td.when a').click()
    wait('the place', lambda: all_of('.ap-term-text') and 'needle-two' in screen())
    # The whole screen as it stood then, with what was shown long before.
    assert 'needle-one' in screen() and '<b>bold</b>' in screen(), screen()
    clean('search')

    for page in (f'/sessions/{session}/transcript', '/gaps', '/chain'):
        driver.get(base + page)
        assert css('h1').text, page
        pictures(page.rsplit('/', 1)[1])
    css('#verify').click()
    wait('the chain', lambda: 'Whole and unchanged' in css('#verdict').text)
    clean('chain')

    # A live session, as it happens.
    driver.get(f'{base}/sessions/{live}')
    wait('the screen as it stands', lambda: 'up-and-live' in screen())
    driver.execute_script('''
        const seen = () => { if ([...document.querySelectorAll('.ap-term-text .ap-line')].some((l) => l.textContent.includes('live-needle')))
            window.seenAt = window.seenAt || Date.now(); };
        setInterval(seen, 5);''')
    before = time.time() * 1000
    subprocess.run(command, shell=True, check=True)
    wait('the live view', lambda: driver.execute_script('return window.seenAt'))
    behind = driver.execute_script('return window.seenAt') - before
    print(f'live view: {behind:.0f} ms from the first key to the picture')
    pictures('live')
    clean('live')

    # Nothing without signing in.
    driver.get(base + '/sessions')
    css('.who button').click()
    wait('the end', lambda: css('h1').text == 'Signed out')
    pictures('signed-out')
    clean('sign-out')
    driver.get(base + '/sessions')
    assert css('h1').text == 'Sign in'
    print('done')
finally:
    driver.quit()
